"""The answers of calibrate, compare, inspect and bench as a person reads them in a terminal."""

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType

from qcompile.report import text
from qcompile.report.console import (
    Paragraph,
    comparison_lines,
    float_table,
    model_line,
    notice_lines,
    paragraphs,
    plan_lines,
    traced_line,
)
from qcompile.report.grid import lines, table
from qcompile.report.results import (
    BenchReport,
    CalibrationReport,
    ComparisonReport,
    DequantizedReport,
    Diagnosis,
    ExportReport,
    Inspection,
    PassList,
    RuntimeEntry,
    TargetEntry,
    TargetList,
    WeightOnlyEntry,
)
from qcompile.report.schema_source import PortFacts


def render_calibration(result: CalibrationReport) -> RenderableType:
    """Return what was seen of each tensor."""
    rows = [
        (
            text.number(row.low),
            text.number(row.high),
            f"[{text.number(row.range_low)}, {text.number(row.range_high)}]",
            f"{row.name}{f' ({row.note})' * bool(row.note)}",
        )
        for row in result.tensors
    ]
    reused = f", {result.reused} from the cache" if result.reused else ""
    used = text.counted(result.samples, "sample")
    head = f"{result.data}: {used} of {result.found:,}, method {result.method}"
    return paragraphs(
        [
            ("model", lines(result.model)),
            ("data", lines(head)),
            ("tensors", table(("low", "high", "range", "name"), rows, left=2)),
            ("cache", lines(f"{result.cache}{reused}; {text.seconds(result.seconds)}")),
            ("notices", notice_lines(result.notices)),
        ]
    )


def render_export(result: ExportReport) -> RenderableType:
    """Return the file, its inputs and outputs, and how far it is from the module."""
    traced = result.traced
    ports = [_port("input", p) for p in traced.inputs]
    ports += [_port("output", p) for p in traced.outputs]
    return paragraphs(
        [
            ("source", lines(traced.source, traced_line(traced))),
            ("ports", table(("", "type", "shape", "name"), ports, left=4)),
            ("notices", notice_lines(result.notices)),
            (
                "files",
                lines(result.output, f"{', '.join(result.files)}: {text.size(result.bytes)}"),
            ),
        ]
    )


def render_dequantized(result: DequantizedReport) -> RenderableType:
    """Return what was turned to floats, and what was not."""
    weights = text.counted(result.weights, "weight")
    return paragraphs(
        [
            ("source", lines(result.source)),
            (
                "floats",
                lines(f"{weights}; {text.counted(result.activations, 'activation')} not rounded"),
            ),
            ("notices", notice_lines(result.notices)),
            ("file", lines(f"{result.output}: {text.size(result.bytes)}")),
        ]
    )


def render_comparison(result: ComparisonReport) -> RenderableType:
    """Return how far the second model is from the first."""
    return paragraphs(
        [
            ("reference", lines(result.reference)),
            ("model", lines(result.model)),
            ("data", lines(result.data)),
            ("accuracy", comparison_lines(result.comparison, seen=True)),
            ("notices", notice_lines(result.notices)),
        ]
    )


def render_inspection(result: Inspection) -> RenderableType:
    """Return what the model is and what a build would do with it."""
    model = result.model
    ports = [_port("input", p) for p in model.inputs] + [_port("output", p) for p in model.outputs]
    before, after = result.weight_bytes, result.int8_weight_bytes
    weights = f"{text.size(before)} in float, about {text.size(after)} planned" if before else ""
    return paragraphs(
        [
            ("model", lines(model.path, model_line(model))),
            ("ports", table(("", "type", "shape", "name"), ports, left=4) if ports else None),
            ("operators", lines(text.listed(model.operators))),
            ("weights", lines(weights)),
            ("plan", plan_lines(result.plan)),
            ("in float", float_table(result.plan.float_nodes)),
            ("notices", notice_lines(result.notices)),
        ]
    )


def render_bench(result: BenchReport) -> RenderableType:
    """Return the speed of each model."""
    rows = [
        (
            text.milliseconds(row.median_ms),
            text.times(row.ratio),
            text.interval(row.interval),
            text.size(row.bytes),
            row.model,
        )
        for row in result.rows
    ]
    made_up = result.inputs == "made up"
    caveat = "inputs were made up: give --data where the values decide the time" if made_up else ""
    return paragraphs(
        [
            ("speed", table(("median", "as fast", "", "size", "model"), rows, left=1)),
            ("how", lines(f"{result.cpu}, {text.counted(result.threads, 'thread')}", caveat)),
            ("notices", notice_lines(result.notices)),
        ]
    )


def _port(kind: str, port: PortFacts) -> tuple[str, str, str, str]:
    shape = "unknown" if port.shape is None else " x ".join(str(d) for d in port.shape) or "scalar"
    return (kind, port.dtype, shape, port.name)


def render_passes(result: PassList) -> RenderableType:
    """Return the passes, numbered in the order in which they run."""
    rows = [(str(i), p.name, p.effect, p.summary) for i, p in enumerate(result.passes, 1)]
    return table(("", "pass", "outputs", "what it does"), rows, left=3)


def render_targets(result: TargetList) -> RenderableType:
    """Return the tables of the targets."""
    return Group(*(_target(entry) for entry in result.targets))


def render_diagnosis(result: Diagnosis) -> RenderableType:
    """Return what is installed and what can be built."""
    rows = [
        (entry.name, entry.version or text.UNKNOWN, entry.missing or _uses(entry))
        for entry in result.runtimes
    ]
    builds = [f"{target}: {answer}" for target, answer in result.builds.items()]
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return paragraphs(
        [
            ("cpu", lines(f"{result.cpu}, {text.counted(result.cores, 'core')}")),
            ("versions", lines(versions)),
            ("runtimes", table(("name", "version", "state"), rows, left=3)),
            ("can build", lines(*builds)),
            ("cache", lines(result.cache)),
            ("unfinished", _unfinished(result)),
        ]
    )


def _unfinished(result: Diagnosis) -> RenderableType | None:
    rows = [(text.size(one.size), f"{one.days:.0f}", one.folder) for one in result.unfinished]
    return table(("size", "days ago", "build"), rows, left=1) if rows else None


def _uses(entry: RuntimeEntry) -> str:
    return ", ".join((*entry.providers, *entry.devices)) or "ready"


def _target(entry: TargetEntry) -> RenderableType:
    return paragraphs(
        [
            ("target", lines(f"{entry.name}: {entry.summary}; opset {entry.opset}")),
            ("types", _pairs("device", "takes", entry.devices)),
            ("8 bits", _pairs("operator", "role", entry.static)),
            ("int8-dynamic", _pairs("operator", "role", entry.dynamic)),
            ("in float", _pairs("operator", "reason", entry.costs)),
            *(_few_bits(entry.weight_only) if entry.weight_only else ()),
        ]
    )


def _few_bits(few: WeightOnlyEntry) -> Iterator[Paragraph]:
    holds = f"{few.form} for {', '.join(few.operators)} in {' or '.join(few.types)}"
    yield "weight-only", lines(holds)
    yield "", _pairs("bits", "stored", {str(k): v for k, v in few.widths.items()})
    yield "", _pairs("level", "computes with", {str(k): v for k, v in few.levels.items()})
    yield "", _pairs("in float", "reason", few.costs)


def _pairs(left: str, right: str, rows: Mapping[str, str]) -> RenderableType | None:
    return table((left, right), rows.items(), left=2) if rows else None
