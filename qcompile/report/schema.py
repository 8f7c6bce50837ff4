"""The report of a build: everything that happened, as plain data. report.json holds just this.

A number that has no finite value (the SQNR of two equal tensors, a metric that was not defined)
is ``null``; the section's ``note`` says why. Every section has a default, so that a build that
stopped early still gives a report.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from qcompile.report.schema_budget import BudgetSection
from qcompile.report.schema_remedies import RemedySection
from qcompile.report.section import Counts, Interval, Number, Section, by_name

Status = Literal["built", "gate failed"]


class PortFacts(Section):
    """An input or output; a dimension is an int, or a name (``?`` without one) when dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None = None


class TracedFacts(Section):
    """How a torch model became an ONNX file.

    Attributes:
        source: As the user gave it.
        torch: Version.
        relative_l2: The largest distance of an output from the module's, over all runs.
        limit: Above which there would have been no file.
        compared: Shape of the first input in each run: the example's, and random ones.
    """

    source: str
    torch: str = ""
    inputs: tuple[PortFacts, ...] = ()
    outputs: tuple[PortFacts, ...] = ()
    relative_l2: Number = None
    limit: float = 0.0
    compared: tuple[tuple[int, ...], ...] = ()
    seconds: float = 0.0


class TrainingFacts(Section):
    """How a torch model was trained to bear its rounding.

    Attributes:
        samples: That it was trained on.
        losses: Of each step: squared error at the outputs over the float model's power.
        resumed: Epochs that an earlier, stopped build had done.
    """

    samples: int
    epochs: int
    batch: int
    rate: float
    weight_bits: int
    learned_scales: bool
    losses: tuple[float, ...]
    resumed: int = 0
    seconds: float = 0.0


class ModelFacts(Section):
    """What the source model is.

    Attributes:
        path: As the user gave it.
        sha256: Of the model file.
        bytes: Of the model file and its external data.
        opset: Of the default domain, as found.
        nodes: In the source, subgraphs included.
        parameters: Elements of all float initializers.
        operators: How many nodes of each operator the canonical graph has.
        traced: How the file was made, where the source is a torch model.
    """

    path: str = ""
    name: str = ""
    sha256: str = ""
    bytes: int = 0
    opset: int = 0
    nodes: int = 0
    parameters: int = 0
    inputs: tuple[PortFacts, ...] = ()
    outputs: tuple[PortFacts, ...] = ()
    operators: Counts = Field(default_factory=dict)
    traced: TracedFacts | None = None


class PassRecord(Section):
    """What one pass did; ``refusals`` counts the places it left alone, by reason."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    modified: bool
    seconds: float
    nodes_before: int
    nodes_after: int
    refusals: Counts = Field(default_factory=dict)


class Canonicalization(Section):
    """The clean-up, and how far it moved the outputs.

    Attributes:
        relative_l2: Largest over the outputs and ``samples``; None where it was not measured.
    """

    passes: tuple[PassRecord, ...] = ()
    relative_l2: Number = None
    samples: int = 0


class Data(Section):
    """What was calibrated with and what was compared with.

    Attributes:
        calibration: Where the calibration samples came from; None for a build without data.
        evaluation: Where the evaluation samples came from.
        found: Samples in the calibration source.
        calibration_samples: Samples that calibration used.
        evaluation_samples: Samples that the comparison used; calibration saw none of them.
        held_back: The evaluation samples are a part of the calibration source.
        labels: The evaluation samples have labels.
    """

    calibration: str | None = None
    evaluation: str | None = None
    found: int = 0
    calibration_samples: int = 0
    evaluation_samples: int = 0
    held_back: bool = False
    labels: bool = False


class GridChange(Section):
    """One way in which grids of a quantized source were changed for the target.

    Attributes:
        what: Types before and after, and the reason.
        tensors: Their names.
        steps: Least and largest ratio of the new step to the old one; None for weights.
    """

    what: str
    tensors: tuple[str, ...]
    steps: Interval | None = None


class SourceGrids(Section):
    """What became of the grids of a source that was quantized already.

    The engine is compared with that source as it is written (optimizations off), and timed against
    the float graph of its codes.

    Attributes:
        activations: Rounded activations of the source.
        weights: Its weights with codes.
        kept: Tensors of the plan with the very grid of the source, shifted by 128 at most.
        changes: Grids that the target wants otherwise.
        calibrated: Activations that the source had no grid for.
        dropped: Roundings of the source that the plan has no place for.
    """

    activations: int
    weights: int
    kept: int = 0
    changes: tuple[GridChange, ...] = ()
    calibrated: int = 0
    dropped: int = 0


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


class OutputRow(Section):
    """How far one output is from the FP model's.

    Attributes:
        dtype: Its element type in the FP model.
        sqnr_db: Signal to quantization noise, in dB; None when equal or undefined (see note).
        max_abs_error: In the output's own unit.
        equal: Share of equal elements, for integer, bool and string outputs.
        identical: No element of any sample differs.
        broken: Elements that are NaN or infinite in one model only.
        mismatched: Samples in which the shapes differ.
    """

    name: str
    dtype: str = ""
    sqnr_db: Number = None
    sqnr_interval: Interval | None = None
    cosine: Number = None
    max_abs_error: Number = None
    relative_l2: Number = None
    equal: Number = None
    identical: bool = False
    broken: int = 0
    mismatched: int = 0
    note: str = ""


class Agreement(Section):
    """How often both models agree: ``top-1``, ``top-5``; share of ``count``, 0 to 1."""

    name: str
    output: str = ""
    share: float
    interval: Interval | None = None
    count: int = 0


class Score(Section):
    """An accuracy or metric of both models on the same samples.

    Attributes:
        name: ``top-1 accuracy``, ``perplexity`` or the user's ``module:callable``.
        difference: Engine minus float.
        interval: Paired 95 % interval of the difference.
        float_interval: 95 % interval of a metric of the float model.
        engine_interval: The same of the engine.
        lower_is_better: A rise is a loss; else a fall is.
    """

    name: str
    output: str = ""
    float_value: Number
    engine_value: Number
    difference: Number
    interval: Interval | None = None
    float_interval: Interval | None = None
    engine_interval: Interval | None = None
    lower_is_better: bool = False
    count: int = 0
    note: str = ""


class ComparisonSection(Section):
    """A model against the FP model, on the same samples."""

    samples: int = 0
    outputs: tuple[OutputRow, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()


class LayerRow(Section):
    """The error of one quantized tensor, in the simulated model.

    Attributes:
        op: Operator that makes the activation or uses the weight; empty for a graph input.
        broken: Elements that are NaN or infinite in one graph only.
    """

    name: str
    kind: Literal["activation", "weight"]
    op: str = ""
    sqnr_db: Number = None
    cosine: Number = None
    max_abs_error: Number = None
    identical: bool = False
    broken: int = 0


class WeightRow(Section):
    """A weight in few bits.

    Attributes:
        node: The first that reads it.
        shape: Output channels, and weights that each sums over.
        group_size: Weights that share a scale; 0 for the whole channel.
        algorithm: That of the codes.
        errors: Relative L2 error at the layer's output on held-back samples, by algorithm; rtn is
            rounding to the nearest codes. Empty where there were no samples.
        accuracy_level: Of the kernel: 4 computes with int8 activations. None: the runtime decides.
        level_error: Relative L2 error that this adds, where it was measured.
    """

    name: str
    op: str = ""
    node: str = ""
    shape: tuple[int, int] = (0, 0)
    bits: int = 0
    group_size: int = 0
    symmetric: bool = True
    algorithm: str = ""
    errors: dict[str, Number] = Field(default_factory=dict)
    accuracy_level: int | None = None
    level_error: Number = None


class Speed(Section):
    """The FP model and the engine, timed in turn in one run.

    Attributes:
        ratio: Median of FP time over engine time, of pairs of runs; above 1 is faster.
        threads: Threads of each session.
        pairs: Pairs of runs.
    """

    float_ms: float
    engine_ms: float
    ratio: float
    interval: Interval
    threads: int = 1
    pairs: int = 0


class Gate(Section):
    """A limit that the engine had to keep.

    Attributes:
        name: The option; ``max-`` is an upper limit, all others are lower ones.
        wanted: The limit, in the unit of the measurement.
        measured: None where nothing could be measured, or where it is infinite (see note).
        bound: Measured was what the thing can be at worst (see note).
    """

    name: str
    wanted: float
    measured: Number
    interval: Interval | None = None
    passed: bool
    note: str = ""
    bound: bool = False


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
