"""Sections of the report about what came in: the model, its clean-up, the data, its grids."""

from typing import Any

from pydantic import Field

from qcompile.report.section import Counts, Interval, Number, Section


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
