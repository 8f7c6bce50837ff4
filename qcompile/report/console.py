"""A report as a person reads it in a terminal: one labelled paragraph a section."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qcompile.plan import FLOATS
from qcompile.report import text
from qcompile.report.console_budget import budget_lines
from qcompile.report.console_delivery import delivery_lines
from qcompile.report.console_remedies import remedy_lines
from qcompile.report.console_source import source_lines
from qcompile.report.console_training import training_lines
from qcompile.report.console_weights import weight_lines
from qcompile.report.grid import lines, table
from qcompile.report.schema import FloatNode, PlanSummary, Report
from qcompile.report.schema_results import (
    ComparisonSection,
    Gate,
    LayerRow,
    OutputRow,
    Score,
    Speed,
)
from qcompile.report.schema_source import ModelFacts, TracedFacts
from qcompile.report.wrapped import Wrapped

WORST = 8
REASONS = 12
OUTPUTS = 8
MISSING = 6

_LONE_NAME = re.compile(r"^(its input|inside \w+) \S+?( is float$|: )")
"""What differs between nodes with the same reason."""

Paragraph = tuple[str, RenderableType | None]
"""Label and content; no content, no paragraph."""


def render(report: Report) -> RenderableType:
    """Return the summary of a build."""
    return paragraphs(
        [
            ("model", _model(report)),
            ("data", _data(report)),
            ("training", training_lines(report.training)),
            ("source", source_lines(report.source)),
            ("calibration", _calibration(report)),
            ("remedies", remedy_lines(report.remedies)),
            ("budget", budget_lines(report.budget)),
            ("plan", plan_lines(report.plan)),
            ("in float", float_table(report.plan.float_nodes)),
            ("kernels", _kernels(report)),
            ("engine", delivery_lines(report.delivery)),
            ("accuracy", _accuracy(report)),
            ("worst", _layers(report.layers)),
            ("weights", weight_lines(report.weights)),
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


def plan_lines(plan: PlanSummary) -> RenderableType | None:
    """Return what is quantized, by operator."""
    total = sum(plan.nodes.values())
    if not total:
        return None
    plain: Collection[str] = ("float",) if plan.scheme in FLOATS else FLOATS
    chosen = {k: n for k, n in plan.nodes.items() if k not in plain}
    rest = {k: n for k, n in plan.nodes.items() if k in plain}
    others = f", the rest {text.listed(rest)}" if rest.keys() - {"float"} else ""
    covered = {
        op: share_of(op, sum(n for k, n in c.items() if k not in plain), sum(c.values()))
        for op, c in plan.by_op.items()
        if any(k not in plain for k in c)
    }
    share = f", {text.percent(plan.int8_share)} of the arithmetic" if plan.int8_share else ""
    by_cpu = plan.target == "ort-cpu" and plan.host_cpu not in {"", plan.device}
    device = f"{plan.device}, built on {plan.host_cpu}" if by_cpu else plan.device
    return lines(
        f"{plan.scheme} for {plan.target} ({device}): "
        f"{sum(chosen.values()):,} of {text.counted(total, 'node')}{share}{others}",
        f"operators: {', '.join(covered.values())}" if covered else "",
        f"tensors: {text.listed(plan.tensors)}" if plan.tensors else "",
    )


def share_of(name: str, part: int, whole: int) -> str:
    """Return ``Conv 3 of 4``, kept in one line; ``Conv 4`` for all of them."""
    if part == whole:
        return f"{name}{text.KEEP}{whole}"
    return text.KEEP.join([name, str(part), "of", str(whole)])


def float_table(nodes: tuple[FloatNode, ...]) -> RenderableType | None:
    """Return the nodes that stay in float by reason, the most frequent first, with operators."""
    if not nodes:
        return None
    by_reason: dict[str, Counter[str]] = defaultdict(Counter)
    for node in nodes:
        by_reason[_LONE_NAME.sub(r"\1\2", node.reason)][node.op] += 1
    order = sorted(by_reason.items(), key=lambda item: (-item[1].total(), item[0]))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right")
    for reason, ops in order[:REASONS]:
        operators = Wrapped(text.listed(ops), "dim")
        grid.add_row(str(ops.total()), Group(Wrapped(reason), operators))
    more = len(order) - REASONS
    if more > 0:
        grid.add_row("", f"and {more} more: plan.json has all")
    return grid


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
    parts.append(_decisions(engine))
    parts.append(lines(*engine.notes))
    return Group(*(part for part in parts if part is not None))


def notice_lines(notices: tuple[str, ...]) -> RenderableType | None:
    """Return the notices, marked and wrapped."""
    if not notices:
        return None
    grid = Table.grid(padding=(0, 1, 0, 0))
    for notice in notices:
        grid.add_row("-", Wrapped(notice))
    return grid


def _model(report: Report) -> RenderableType | None:
    model, canonical = report.model, report.canonical
    if not model.path:
        return None
    moved = ""
    if canonical.relative_l2 is not None:
        moved = f"; outputs moved by {canonical.relative_l2:.1e} (relative L2)"
        if canonical.relative_l2 == 0:
            moved = "; outputs unchanged, bit for bit"
    nodes = sum(model.operators.values())
    return lines(
        model.path,
        traced_line(model.traced) if model.traced else "",
        model_line(model),
        f"cleaned up: {text.counted(nodes, 'node')}{moved}" if nodes else "",
    )


def traced_line(traced: TracedFacts) -> str:
    """Return how far the ONNX file is from the torch module."""
    runs = text.counted(len(traced.compared), "run")
    return (
        f"traced with torch{text.KEEP}{traced.torch}; {runs} of both, outputs at most "
        f"{text.number(traced.relative_l2, '.1e')} apart (relative L2; limit {traced.limit:g})"
    )


def model_line(model: ModelFacts) -> str:
    """Return opset and sizes."""
    return (
        f"opset{text.KEEP}{model.opset}, {text.counted(model.nodes, 'node')}, "
        f"{text.counted(model.parameters, 'parameter')}, {text.size(model.bytes)}"
    )


def _data(report: Report) -> RenderableType | None:
    data = report.data
    used = text.counted(data.calibration_samples, "sample")
    asked = f"{data.calibration}: {used} of {data.found:,}" if data.calibration else ""
    compared = text.counted(data.evaluation_samples, "sample")
    if data.held_back:
        return lines(asked, f"{compared} held back for the comparison")
    return lines(asked, f"{data.evaluation}: {compared} compared" if data.evaluation else "")


def _calibration(report: Report) -> RenderableType | None:
    summary = report.calibration
    if summary is None:
        return None
    reused = f", {summary.reused} from the cache" if summary.reused else ""
    return lines(
        f"method {summary.method}, {text.counted(summary.tensors, 'tensor')}{reused}, "
        f"{text.seconds(summary.seconds)}",
        f"chosen: {text.listed(summary.chosen)}" if summary.chosen else "",
    )


def _accuracy(report: Report) -> RenderableType | None:
    """Return the engine's accuracy; where it was not run here, that of the simulation, marked."""
    if report.engine.samples or report.simulated is None:
        return comparison_lines(report.engine, report.simulated, seen=False)
    simulated = comparison_lines(report.simulated, seen=False)
    label = Wrapped("simulated: the graph in ONNX Runtime, optimizations off; no engine ran here")
    return Group(label, simulated) if simulated is not None else None


def _kernels(report: Report) -> RenderableType | None:
    kernels = report.kernels
    if not kernels.expected and not kernels.obtained:
        return None
    expected, obtained = kernels.expected, kernels.obtained
    names = sorted(expected | obtained, key=lambda name: (-expected.get(name, 0), name))
    rows = [share_of(n, obtained.get(n, 0), expected.get(n, 0)) for n in names]
    whole, part = sum(expected.values()), sum(obtained.values())
    verdict = f"all {whole:,}" if part == whole else f"{part:,} of {whole:,}"
    more = len(kernels.missing) - MISSING
    missing = [*kernels.missing[:MISSING], *([f"and {more} more"] if more > 0 else [])]
    return lines(
        f"{verdict} expected int8 kernels run: {', '.join(rows)}",
        f"planned in int8, run otherwise: {', '.join(missing)}" if missing else "",
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
        text.decibels(row.sqnr_db),
        text.interval(row.sqnr_interval),
        text.decibels(simulated.sqnr_db) if simulated else text.UNKNOWN,
        text.number(row.cosine, ".5f"),
        text.number(row.max_abs_error, ".3g"),
        f"{row.name}{equal}{note}",
    )


def _percent_interval(ends: tuple[float | None, float | None] | None) -> str:
    if ends is None:
        return ""
    low, high = (None if end is None else 100 * end for end in ends)
    return text.interval((low, high), ".2f")


def _decisions(engine: ComparisonSection) -> RenderableType:
    """Return agreements, then scores as a table; outputs are named where there are several."""
    outputs = {a.output for a in engine.agreements} | {s.output for s in engine.scores}
    several = len(outputs - {""}) > 1
    agreements = lines(
        *(
            f"{a.name} agreement with the float model{_of(a.output, several=several)} "
            f"{text.percent(a.share)} {_percent_interval(a.interval)}"
            for a in engine.agreements
        )
    )
    rows = [row for score in engine.scores for row in _score(score, several=several)]
    header = ("float", "engine", "difference", "", "score")
    parts = [agreements, table(header, rows, left=1) if rows else None]
    return Group(*(part for part in parts if part is not None))


def _score(score: Score, *, several: bool) -> Iterator[tuple[str, ...]]:
    """Yield a row, and below it the intervals of both models where they are known."""
    note = f" ({score.note})" if score.note else ""
    lower = "lower is better" if score.lower_is_better else ""
    shares = score.name.endswith("accuracy")
    show = text.percent if shares else text.number
    factor = 100 if shares else 1
    ends = score.interval and tuple(None if e is None else factor * e for e in score.interval)
    difference = None if score.difference is None else factor * score.difference
    yield (
        show(score.float_value),
        show(score.engine_value),
        text.number(difference, "+.2f" if shares else "+.3g"),
        text.interval((ends[0], ends[1]), "+.2f" if shares else "+.3g") if ends else "",
        f"{score.name}{_of(score.output, several=several)}{note}",
    )
    if score.float_interval or score.engine_interval or lower:
        both = (text.interval(each) for each in (score.float_interval, score.engine_interval))
        yield (*both, "", "", lower)


def _of(output: str, *, several: bool) -> str:
    return f" of {output}" if several and output else ""


def _layers(layers: tuple[LayerRow, ...]) -> RenderableType | None:
    if not layers:
        return None
    rows = [(text.decibels(row.sqnr_db), row.kind, row.op, _marked(row)) for row in layers[:WORST]]
    return table(("SQNR", "tensor", "of", f"name ({len(layers)} in all)"), rows, left=3)


def _marked(row: LayerRow) -> str:
    if row.broken:
        return f"{row.name} ({text.counted(row.broken, 'element')} NaN or infinite)"
    return f"{row.name} (identical)" if row.identical else row.name


def _speed(report: Report) -> RenderableType | None:
    speed = report.speed
    if speed is None:
        return None
    prefill = report.prefill
    return lines(
        ("one token: " if prefill else "") + _pace(speed),
        "prefill: " + _pace(prefill) if prefill else "",
        f"{text.counted(speed.threads, 'thread')}, "
        f"{text.counted(speed.pairs, 'pair')} of runs in turn",
    )


def _pace(speed: Speed) -> str:
    return (
        f"float {text.milliseconds(speed.float_ms)}, engine {text.milliseconds(speed.engine_ms)}: "
        f"{text.times(speed.ratio)} as fast {text.interval(speed.interval)}"
    )


def _size(report: Report) -> RenderableType | None:
    before, after = report.model.bytes, report.engine_bytes()
    if not before or not after:
        return None
    return lines(f"{text.size(before)} to {text.size(after)} ({after / before:.0%})")


def _gates(gates: tuple[Gate, ...]) -> RenderableType | None:
    if not gates:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    for gate in gates:
        limit = "at most" if gate.name.startswith("max-") else "at least"
        grid.add_row(
            Text("passed", "green") if gate.passed else Text("MISSED", "bold red"),
            Group(
                Wrapped(
                    f"{gate.name} {limit} {text.number(gate.wanted)}: measured "
                    f"{text.number(gate.measured)} {text.interval(gate.interval)}"
                ),
                *([Wrapped(gate.note)] if gate.note and (gate.bound or not gate.passed) else []),
            ),
        )
    return grid


def _bundle(report: Report) -> RenderableType | None:
    if report.output is None:
        return None
    where = Wrapped(report.output, "bold")
    if report.status == "gate failed":
        return Group(where, Text("a gate was missed: the engine was not put in place", "bold red"))
    files = ", ".join(f"{a.path}{text.KEEP}{text.size(a.bytes)}" for a in report.artifacts)
    return Group(*(part for part in (where, lines(files)) if part is not None))
