"""The report of a build: everything that happened, as plain data. report.json holds just this.

A number that has no finite value (the SQNR of two equal tensors, a metric that was not defined)
is ``null``; the section's ``note`` says why. Every section has a default, so that a build that
stopped early still gives a report.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from qcompile.report.schema_budget import BudgetSection
from qcompile.report.schema_remedies import RemedySection
from qcompile.report.schema_results import ComparisonSection, Gate, LayerRow, Speed, WeightRow
from qcompile.report.schema_source import (
    Canonicalization,
    Data,
    ModelFacts,
    PassRecord,
    SourceGrids,
    TrainingFacts,
)
from qcompile.report.section import Counts, Number, Section, by_name

Status = Literal["built", "gate failed"]


class CalibrationSummary(Section):
    """How the ranges of the activations were found.

    Attributes:
        method: What the recipe asked for.
        chosen: How many tensors took each method.
        tensors: Tensors with statistics.
        reused: Tensors whose statistics came from the cache.
    """

    method: str = ""
    chosen: Counts = Field(default_factory=dict)
    tensors: int = 0
    reused: int = 0
    seconds: float = 0.0


class FloatNode(Section):
    """A node that stays in float, and why."""

    name: str
    op: str
    reason: str


class PlanSummary(Section):
    """What the compiler decided; plan.json has all of it.

    Attributes:
        nodes: Number of nodes of each precision.
        by_op: Operator to number of nodes of each precision.
        tensors: Number of quantized tensors of each kind.
        int8_share: Share of the multiply-accumulates that run in int8, 0 to 1, where known.
    """

    scheme: str = ""
    target: str = ""
    device: str = ""
    host_cpu: str = ""
    nodes: Counts = Field(default_factory=dict)
    by_op: Annotated[dict[str, Counts], AfterValidator(by_name)] = Field(default_factory=dict)
    tensors: Counts = Field(default_factory=dict)
    int8_share: Number = None
    float_nodes: tuple[FloatNode, ...] = ()


class Kernels(Section):
    """The int8 kernels that the plan expected, and those that the runtime's own graph has.

    Attributes:
        expected: Kernel to count, from the plan.
        obtained: Kernel to count, from the graph that ONNX Runtime runs.
        missing: Nodes that were planned in int8 and run otherwise, by name.
    """

    expected: Counts = Field(default_factory=dict)
    obtained: Counts = Field(default_factory=dict)
    missing: tuple[str, ...] = ()


class Finding(Section):
    """A place in the emitted graph that breaks a rule of the target; see ``qcompile check``."""

    rule: str
    severity: str
    where: str
    what: str


class EngineLayer(Section):
    """What a node was planned in, and what the built engine computes it in.

    Attributes:
        rule: For a miss, the rule that likely explains it.
    """

    node: str
    op: str
    wanted: str
    obtained: str
    rule: str = ""


class Delivery(Section):
    """What runs on the device, where that is not the ONNX file itself.

    Attributes:
        kind: What it is, in words.
        state: run (here, and compared), built (but it cannot run here) or yet to be built.
        path: Its file in the bundle; empty where it is yet to be built.
        bytes: Of the file.
        seconds: That building it took.
        library: What builds it, with its version.
        layers: Weighted nodes, those that were missed first.
        findings: Of the lint, the gravest first.
        placed: Where nodes would run: provider to number of nodes, predicted.
        fallen: Nodes predicted to fall to the CPU, by reason.
        loads_ms: Time of a cold start: file name to median milliseconds.
        notes: What else must be known.
    """

    kind: str = ""
    state: Literal["run", "built", "yet to be built"] = "yet to be built"
    path: str = ""
    bytes: int = 0
    seconds: Number = None
    library: str = ""
    layers: tuple[EngineLayer, ...] = ()
    findings: tuple[Finding, ...] = ()
    placed: Counts = Field(default_factory=dict)
    fallen: Counts = Field(default_factory=dict)
    loads_ms: dict[str, float] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Artifact(Section):
    """A file of the bundle; the path is relative to the bundle."""

    path: str
    bytes: int
    sha256: str


class Report(Section):
    """Everything that happened in one build.

    Attributes:
        output: The folder that was written; None when nothing was.
        source: For a model that was quantized already.
        training: For a torch model that was trained first.
        budget: Which layers ``--max-drop`` keeps in float.
        remedies: What was done to the float graph so that 8 bits cost it less.
        passes: Those that ran after the plan was made; ``canonical`` has those before.
        delivery: What runs on the device, where that is not the ONNX file itself.
        engine: The engine against the FP model; ``simulated`` is the same graph with the
            runtime's optimizations off, so that a difference of kernels is seen. Empty where no
            engine could be run here: then the simulation alone speaks for it.
        layers: Errors of the quantized tensors, worst first.
        weights: Weights in few bits, in graph order.
        speed: Of one run on a sample; with weights in few bits a language model's run on one token.
        prefill: Such a model's run on a whole sample.
        notices: What was skipped, clipped or guessed, and warnings.
        seconds: Stage to time.
    """

    version: Literal[1] = 1
    status: Status = "built"
    output: str | None = None
    model: ModelFacts = ModelFacts()
    canonical: Canonicalization = Canonicalization()
    data: Data = Data()
    source: SourceGrids | None = None
    training: TrainingFacts | None = None
    calibration: CalibrationSummary | None = None
    remedies: RemedySection | None = None
    budget: BudgetSection | None = None
    plan: PlanSummary = PlanSummary()
    passes: tuple[PassRecord, ...] = ()
    kernels: Kernels = Kernels()
    delivery: Delivery | None = None
    engine: ComparisonSection = ComparisonSection()
    simulated: ComparisonSection | None = None
    layers: tuple[LayerRow, ...] = ()
    weights: tuple[WeightRow, ...] = ()
    speed: Speed | None = None
    prefill: Speed | None = None
    gates: tuple[Gate, ...] = ()
    notices: tuple[str, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    recipe: dict[str, Any] = Field(default_factory=dict)
    versions: Annotated[dict[str, str], AfterValidator(by_name)] = Field(default_factory=dict)

    def engine_bytes(self) -> int:
        """Return the size of the engine: its model file and its external data."""
        if self.delivery is not None and self.delivery.bytes:
            return self.delivery.bytes
        return sum(a.bytes for a in self.artifacts if a.path.startswith("model.onnx"))
