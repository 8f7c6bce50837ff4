"""What runs on the device, as a person reads it: state, types of layers, findings, placement."""

from collections import Counter

from rich.console import Group, RenderableType

from qcompile.report import text
from qcompile.report.grid import lines, table
from qcompile.report.schema import Delivery, EngineLayer
from qcompile.report.section import Counts

ROWS = 8


def delivery_lines(delivery: Delivery | None) -> RenderableType | None:
    """Return what was built, or what is left to do on the device."""
    if delivery is None:
        return None
    parts: list[RenderableType | None] = [
        lines(_state(delivery), _layers(delivery.layers), _placed(delivery)),
        _missed(delivery.layers),
        _fallen(delivery.fallen),
        _findings(delivery),
    ]
    parts.append(lines(*delivery.notes))
    return Group(*(part for part in parts if part is not None))


def _state(delivery: Delivery) -> str:
    by = f", by {delivery.library}" if delivery.library else ""
    if delivery.state == "yet to be built":
        return f"{delivery.kind}: yet to be built{by}"
    took = f" in {text.seconds(delivery.seconds)}" if delivery.seconds else ""
    run = "" if delivery.state == "run" else "; it cannot run on this machine"
    return f"{delivery.kind} {delivery.path}, {text.size(delivery.bytes)}{took}{by}{run}"


def _layers(layers: tuple[EngineLayer, ...]) -> str:
    if not layers:
        return ""
    wanted = Counter(layer.wanted for layer in layers)
    obtained = Counter(layer.wanted for layer in layers if layer.wanted == layer.obtained)
    rows = [f"{kind} {obtained[kind]} of {count}" for kind, count in wanted.items()]
    return f"layers that compute as planned: {', '.join(rows)}"


def _missed(layers: tuple[EngineLayer, ...]) -> RenderableType | None:
    missed = [layer for layer in layers if layer.wanted != layer.obtained]
    if not missed:
        return None
    rows = [(x.wanted, x.obtained, x.op, x.node, x.rule) for x in missed[:ROWS]]
    header = ("planned", "obtained", "of", f"node ({len(missed)} in all)", "likely rule")
    return table(header, rows, left=5)


def _findings(delivery: Delivery) -> RenderableType | None:
    if not delivery.findings:
        return None
    rows = [(x.rule, x.severity, x.where, x.what) for x in delivery.findings[:ROWS]]
    header = ("rule", "cost", "where", f"what ({len(delivery.findings)} in all)")
    return table(header, rows, left=4)


def _placed(delivery: Delivery) -> str:
    if not delivery.placed:
        return ""
    return f"predicted placement, no device was asked: {text.listed(delivery.placed)}"


def _fallen(reasons: Counts) -> RenderableType | None:
    if not reasons:
        return None
    order = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    rows = [(str(count), why) for why, count in order[:ROWS]]
    more = f" ({len(order)} reasons in all)" if len(order) > ROWS else ""
    return table(("nodes", f"stay on the CPU, since{more}"), rows, left=1)
