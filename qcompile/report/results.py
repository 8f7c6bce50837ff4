"""What calibrate, compare, inspect, check and bench answer. Plain data, like a report."""

from typing import Literal

from qcompile.report.schema import PlanSummary
from qcompile.report.schema_results import ComparisonSection
from qcompile.report.schema_source import ModelFacts, TracedFacts
from qcompile.report.section import Interval, Number, Section

SeverityName = Literal["error", "float", "numerics", "warning"]


class TensorRow(Section):
    """What calibration saw of one activation, and the range it would take.

    Attributes:
        low: Smallest element seen; None where the tensor has infinite elements.
        high: Largest element seen.
        range_low: Low end of the range of the recipe's method; None where it is chosen later.
        range_high: High end of that range.
    """

    name: str
    low: Number
    high: Number
    elements: int = 0
    range_low: Number = None
    range_high: Number = None
    note: str = ""


class CalibrationReport(Section):
    """The statistics that are in the cache now.

    Attributes:
        found: Samples in the data.
        samples: Those that were used; a build holds back the rest for its comparison.
        reused: Tensors whose statistics were in the cache before.
        cache: The folder.
    """

    model: str
    data: str
    found: int = 0
    samples: int
    method: str
    tensors: tuple[TensorRow, ...] = ()
    reused: int = 0
    cache: str = ""
    seconds: float = 0.0
    notices: tuple[str, ...] = ()


class ExportReport(Section):
    """An ONNX file made of a torch model.

    Attributes:
        sha256: Of the ``.onnx`` file.
        bytes: Of all files.
        files: Their names: the model, its external data, its tokenizer.
    """

    output: str
    sha256: str
    bytes: int
    files: tuple[str, ...] = ()
    traced: TracedFacts
    notices: tuple[str, ...] = ()


class DequantizedReport(Section):
    """A float model made of a quantized one.

    Attributes:
        source: The quantized model.
        activations: Activations that were rounded there.
        weights: Weights whose codes became floats.
        bytes: Of the file and its external data.
        notices: What was left as it is, and why.
    """

    source: str
    output: str
    activations: int
    weights: int
    bytes: int
    notices: tuple[str, ...] = ()


class ComparisonReport(Section):
    """Two models on the same samples; the first is the reference."""

    reference: str
    model: str
    data: str
    comparison: ComparisonSection = ComparisonSection()
    notices: tuple[str, ...] = ()


class Inspection(Section):
    """A model as a target sees it, before any data was seen.

    Attributes:
        weight_bytes: Of the float32 weights.
        int8_weight_bytes: Of the same with a byte for each element that would be quantized.
        plan: What would be quantized, and why the rest would not; without measured errors.
    """

    model: ModelFacts
    plan: PlanSummary
    weight_bytes: int = 0
    int8_weight_bytes: int = 0
    notices: tuple[str, ...] = ()


class FindingEntry(Section):
    """A place where a model or a script breaks a rule of a target.

    Attributes:
        rule: ``L01`` and so on.
        severity: error (does not parse or build), float (computes in float what was quantized),
            numerics (computes something else) or warning.
        where: Node, tensor, or line of a script.
        what: What is wrong there and what to do.
    """

    rule: str
    severity: SeverityName
    where: str
    what: str


class CheckReport(Section):
    """What a target has against a model or a script.

    Attributes:
        model: The file.
        setting: Target, version and devices that it was checked for.
        counts: Severity to the number of findings.
    """

    model: str
    target: str
    setting: str
    counts: dict[SeverityName, int]
    findings: tuple[FindingEntry, ...] = ()
    notices: tuple[str, ...] = ()


class BenchRow(Section):
    """The speed of one model.

    Attributes:
        bytes: Of the file and its external data.
        ratio: Time of the first model over the time of this one; None for the first.
    """

    model: str
    median_ms: float
    bytes: int
    ratio: Number = None
    interval: Interval | None = None


class BenchReport(Section):
    """Models timed in turn in one run.

    Attributes:
        inputs: Where the inputs came from: the data, or values made for the timing only.
    """

    rows: tuple[BenchRow, ...] = ()
    inputs: Literal["data", "made up"] = "data"
    threads: int = 1
    cpu: str = ""
    notices: tuple[str, ...] = ()


class PassEntry(Section):
    """A pass: its effect on outputs and the first line of its documentation."""

    name: str
    effect: str
    summary: str
    needs: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


class PassList(Section):
    """The passes in the order in which they run."""

    passes: tuple[PassEntry, ...]


class WeightOnlyEntry(Section):
    """How a target stores weights of few bits for operators that compute in float.

    Attributes:
        form: The operator that holds the codes.
        types: What graphs may compute in.
        widths: Bits to how they are stored, with the reason.
        levels: ``accuracy_level`` to what it computes with.
        operators: Those that take such weights.
        costs: Other operators with weights, and why they stay in float.
    """

    form: str
    types: tuple[str, ...]
    widths: dict[int, str]
    levels: dict[int, str]
    operators: tuple[str, ...]
    costs: dict[str, str]


class TargetEntry(Section):
    """A target as its table says it.

    Attributes:
        devices: Name of a device to the types that it takes, with the reason.
        static: Operator to its role in scheme int8.
        dynamic: Operator to its role in scheme int8-dynamic.
        weight_only: What scheme weight-only may do.
        costs: Operators that stay in float, with the reason.
    """

    name: str
    summary: str
    opset: int
    devices: dict[str, str]
    static: dict[str, str]
    dynamic: dict[str, str]
    weight_only: WeightOnlyEntry | None
    costs: dict[str, str]


class TargetList(Section):
    """The targets that can be built for."""

    targets: tuple[TargetEntry, ...]


class RuntimeEntry(Section):
    """A library that runs or builds engines; ``missing`` says why it cannot be used."""

    name: str
    version: str | None
    missing: str | None = None
    providers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


class UnfinishedEntry(Section):
    """Work of a weight-only build that did not end: bytes on disk, days since the last write."""

    folder: str
    size: int
    days: float


class Diagnosis(Section):
    """What this machine is and what can be built on it.

    Attributes:
        cpu: Instruction set that engines are built for by default.
        builds: Target to whether it can be built here, or what is missing.
        cache: Folder of statistics and of unfinished builds (``QCOMPILE_CACHE``).
        unfinished: Those builds that were stopped, or still run.
    """

    cpu: str
    cores: int
    versions: dict[str, str]
    runtimes: tuple[RuntimeEntry, ...]
    builds: dict[str, str]
    cache: str
    unfinished: tuple[UnfinishedEntry, ...]
