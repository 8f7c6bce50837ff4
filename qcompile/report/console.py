"""A report as a person reads it in a terminal: one labelled paragraph a section."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qcompile.report import text
from qcompile.report.schema import (
    ComparisonSection,
    FloatNode,
    Gate,
    LayerRow,
    OutputRow,
    PlanSummary,
    Report,
    Score,
)

WORST = 8
REASONS = 12
OUTPUTS = 8

Paragraph = tuple[str, RenderableType | None]
"""Label and content; no content, no paragraph."""


def render(report: Report) -> RenderableType:
    """Return the summary of a build."""
    return paragraphs(
        [
            ("model", _model(report)),
            ("data", _data(report)),
            ("calibration", _calibration(report)),
            ("plan", plan_lines(report.plan)),
            ("in float", float_table(report.plan.float_nodes)),
            ("kernels", _kernels(report)),
            ("accuracy", comparison_lines(report.engine, report.simulated, seen=False)),
            ("worst", _layers(report.layers)),
            ("speed", _speed(report)),
            ("size", _size(report)),
            ("gates", _gates(report.gates)),
            ("notices", notice_lines(report.notices)),
            ("bundle", _bundle(report)),
        ]
    )


def paragraphs(content: Iterable[Paragraph]) -> RenderableType:
    """Return labels in one column and their content beside them."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for label, body in content:
        if body is not None:
            grid.add_row(label, body)
    return grid


def lines(*content: str) -> RenderableType | None:
    """Return one line of text under another; None without any."""
    rows = [Text(text.plain(line)) for line in content if line]
    return Group(*rows) if rows else None


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], left: int) -> Table:
    """Return a table whose last ``left`` columns are text and whose others are numbers."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, name in enumerate(header):
        is_text = index >= len(header) - left
        grid.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(text.plain(cell) for cell in row))
    return grid


def plan_lines(plan: PlanSummary) -> RenderableType | None:
    """Return what is quantized, by operator."""
    total = sum(plan.nodes.values())
    if not total:
        return None
    quantized = total - plan.nodes.get("float", 0)
    share = f", {text.percent(plan.int8_share)} of the arithmetic" if plan.int8_share else ""
    host = f", built on {plan.host_cpu}" if plan.host_cpu not in {"", plan.cpu} else ""
    covered = {
        op: f"{op} {sum(c.values()) - c.get('float', 0)} of {sum(c.values())}"
        for op, c in plan.by_op.items()
        if sum(c.values()) > c.get("float", 0)
    }
    return lines(
        f"{plan.scheme} for {plan.target} ({plan.cpu}{host}): "
        f"{quantized:,} of {text.counted(total, 'node')} in int8{share}",
        ", ".join(covered.values()),
        f"quantized tensors: {text.listed(plan.tensors)}" if plan.tensors else "",
    )


def float_table(nodes: tuple[FloatNode, ...]) -> RenderableType | None:
    """Return the nodes that stay in float, grouped by reason, the most frequent first."""
    if not nodes:
        return None
    by_reason: dict[str, Counter[str]] = defaultdict(Counter)
    for node in nodes:
        by_reason[node.reason][node.op] += 1
    order = sorted(by_reason.items(), key=lambda item: (-item[1].total(), item[0]))
    rows = [(str(ops.total()), reason, text.listed(ops)) for reason, ops in order[:REASONS]]
    grid = table(("nodes", "reason", "operators"), rows, left=2)
    more = len(order) - REASONS
    rest = lines(f"and {text.counted(more, 'other reason')}" if more > 0 else "")
    return grid if rest is None else Group(grid, rest)


def comparison_lines(
    engine: ComparisonSection, simulated: ComparisonSection | None = None, *, seen: bool
) -> RenderableType | None:
    """Return errors, agreement and scores with their 95 % intervals.

    Args:
        engine: What was measured of the engine.
        simulated: The same of the simulated model.
        seen: The samples may be ones that calibration saw.
    """
    if not engine.samples:
        return None
    unseen = "" if seen else " that calibration did not see"
    head = f"on {text.counted(engine.samples, 'sample')}{unseen}; [95 % interval]"
    parts: list[RenderableType | None] = [lines(head), _outputs(engine, simulated)]
    parts.append(
        lines(
            *(
                f"{a.name} agreement with the float model {text.percent(a.share)} "
                f"{_percent_interval(a.interval)}"
                for a in engine.agreements
            )
        )
    )
    parts.append(lines(*(_score(s) for s in engine.scores)))
    parts.append(lines(*engine.notes))
    return Group(*(part for part in parts if part is not None))


def notice_lines(notices: tuple[str, ...]) -> RenderableType | None:
    """Return the notices, marked and wrapped."""
    if not notices:
        return None
    grid = Table.grid(padding=(0, 1, 0, 0))
    for notice in notices:
        grid.add_row("-", text.plain(notice))
    return grid


def _model(report: Report) -> RenderableType | None:
    model, canonical = report.model, report.canonical
    if not model.path:
        return None
    moved = ""
    if canonical.relative_l2 is not None:
        moved = (
            f"; outputs moved by {text.number(canonical.relative_l2, '.1e')} (relative L2, "
            f"{text.counted(canonical.samples, 'sample')})"
        )
    nodes = sum(model.operators.values())
    return lines(
        f"{model.path}: opset {model.opset}, {text.counted(model.nodes, 'node')}, "
        f"{text.counted(model.parameters, 'parameter')}, {text.size(model.bytes)}",
        f"canonical graph: {text.counted(nodes, 'node')}{moved}" if nodes else "",
    )


def _data(report: Report) -> RenderableType | None:
    data = report.data
    used = text.counted(data.calibration_samples, "sample")
    asked = f"{data.calibration}: {used} of {data.found:,}" if data.calibration else ""
    compared = text.counted(data.evaluation_samples, "sample")
    if data.held_back:
        return lines(f"{asked}; {compared} held back for the comparison")
    return lines(asked, f"{data.evaluation}: {compared} compared" if data.evaluation else "")


def _calibration(report: Report) -> RenderableType | None:
    summary = report.calibration
    if summary is None:
        return None
    reused = f", {summary.reused} from the cache" if summary.reused else ""
    chosen = f"; chosen: {text.listed(summary.chosen)}" if summary.chosen else ""
    return lines(
        f"method {summary.method}: {text.counted(summary.tensors, 'tensor')}{reused}"
        f"{chosen}; {text.seconds(summary.seconds)}"
    )


def _kernels(report: Report) -> RenderableType | None:
    kernels = report.kernels
    if not kernels.expected and not kernels.obtained:
        return None
    names = sorted(kernels.expected | kernels.obtained)
    rows = [f"{n} {kernels.obtained.get(n, 0)} of {kernels.expected.get(n, 0)}" for n in names]
    missing = ", ".join(kernels.missing)
    return lines(
        f"int8 kernels obtained, of those expected: {', '.join(rows)}",
        f"planned in int8, run in float: {missing}" if missing else "",
    )


def _outputs(engine: ComparisonSection, simulated: ComparisonSection | None) -> RenderableType:
    others = {row.name: row for row in simulated.outputs} if simulated else {}
    header = ("SQNR", "", "simulated", "cosine", "max error", "output")
    rows = [_output(row, others.get(row.name)) for row in engine.outputs[:OUTPUTS]]
    grid = table(header, rows, left=1)
    more = len(engine.outputs) - OUTPUTS
    if more > 0:
        grid.add_row(*[""] * 5, f"and {more} more: report.json has all")
    return grid


def _output(row: OutputRow, simulated: OutputRow | None) -> tuple[str, ...]:
    note = f" ({row.note})" if row.note else ""
    equal = f": {text.percent(row.equal)} equal" if row.equal is not None else ""
    return (
        _decibel(row.sqnr_db),
        text.interval(row.sqnr_interval),
        _decibel(simulated.sqnr_db) if simulated else text.UNKNOWN,
        text.number(row.cosine, ".5f"),
        text.number(row.max_abs_error, ".3g"),
        f"{row.name}{equal}{note}",
    )


def _decibel(value: float | None) -> str:
    return text.UNKNOWN if value is None else f"{value:.1f} dB"


def _percent_interval(ends: tuple[float | None, float | None] | None) -> str:
    if ends is None:
        return ""
    low, high = (None if end is None else 100 * end for end in ends)
    return text.interval((low, high), ".2f")


def _score(score: Score) -> str:
    note = f" ({score.note})" if score.note else ""
    return (
        f"{score.name}: float {text.number(score.float_value)}, "
        f"engine {text.number(score.engine_value)}, "
        f"difference {text.number(score.difference, '+.3g')} "
        f"{text.interval(score.interval, '+.3g')}{note}"
    )


def _layers(layers: tuple[LayerRow, ...]) -> RenderableType | None:
    if not layers:
        return None
    rows = [(_decibel(row.sqnr_db), row.kind, row.op, _marked(row)) for row in layers[:WORST]]
    return table(("SQNR", "tensor", "of", f"name ({len(layers)} in all)"), rows, left=3)


def _marked(row: LayerRow) -> str:
    if row.broken:
        return f"{row.name} ({text.counted(row.broken, 'element')} NaN or infinite)"
    return f"{row.name} (identical)" if row.identical else row.name


def _speed(report: Report) -> RenderableType | None:
    speed = report.speed
    if speed is None:
        return None
    return lines(
        f"float {text.milliseconds(speed.float_ms)}, engine "
        f"{text.milliseconds(speed.engine_ms)}: {text.times(speed.ratio)} as fast "
        f"{text.interval(speed.interval)}, {text.counted(speed.threads, 'thread')}, "
        f"{text.counted(speed.pairs, 'pair')} of runs in turn"
    )


def _size(report: Report) -> RenderableType | None:
    before, after = report.model.bytes, report.engine_bytes()
    if not before or not after:
        return None
    return lines(f"{text.size(before)} -> {text.size(after)} ({after / before:.0%})")


def _gates(gates: tuple[Gate, ...]) -> RenderableType | None:
    if not gates:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    for gate in gates:
        limit = "at most" if gate.name.startswith("max-") else "at least"
        grid.add_row(
            Text("passed", "green") if gate.passed else Text("MISSED", "bold red"),
            text.plain(gate.name),
            f"{limit} {text.number(gate.wanted)}",
            f"measured {text.number(gate.measured)} {text.interval(gate.interval)}",
            text.plain(gate.note),
        )
    return grid


def _bundle(report: Report) -> RenderableType | None:
    if report.output is None:
        return None
    where = Text(text.plain(report.output), "bold")
    if report.status == "gate failed":
        return Group(where, Text("a gate was missed: the engine was not put in place", "bold red"))
    files = ", ".join(f"{a.path} {text.size(a.bytes)}" for a in report.artifacts)
    return Group(*(part for part in (where, lines(files)) if part is not None))
