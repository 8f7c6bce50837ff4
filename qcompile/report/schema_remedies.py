"""The section of a report on remedies: what was done to the float graph before it was rounded."""

from pydantic import Field

from qcompile.report.section import Counts, Number, Section


class RemedyTrial(Section):
    """A remedy that ``auto`` tried.

    Attributes:
        remedy: Its name; empty for the graph as it is.
        sqnr_db: Of the outputs with all on codes that may be, in dB.
        kept: It is part of what was built.
    """

    remedy: str
    sqnr_db: Number = None
    kept: bool


class OutlierRow(Section):
    """A layer with input columns in float.

    Attributes:
        node: Its name.
        channels: Numbers of the columns in float; None where they are found at run time.
        columns: All columns.
        share: Of the layer's multiply-adds in float, 0 to 1.
        of_model: The same, of those of all layers with weights.
    """

    node: str
    channels: tuple[int, ...] | None
    columns: int
    share: Number = None
    of_model: Number = None


class LearnedCodes(Section):
    """Codes of weights that were learned.

    Attributes:
        method: adaround or brecq.
        weights: With learned codes; the others keep the nearest ones.
        of: Weights on codes.
        steps: Of the optimizer, for each layer or block.
        seed: Of its chance.
    """

    method: str
    weights: int
    of: int
    steps: int
    seed: int


class RemedySection(Section):
    """What was done so that 8 bits cost less.

    Attributes:
        asked: ``--algorithm``.
        trials: What ``auto`` measured, in order.
        rescaled: Remedy to the number of values that it rescaled.
        strengths: SmoothQuant's, least and largest.
        multiplied: Value that a Mul of its own divides, for SmoothQuant, to the reason why no
            constant takes the division.
        shifted: Values behind a Relu that were shifted.
        corrected: Nodes whose bias was corrected, by how.
        learned: Codes of weights that were learned.
        outliers: Layers with columns in float.
        left: Places that were looked at and left alone, by reason.
        moved: How far the float outputs moved by it all (shifts left out), relative L2.
    """

    asked: str
    trials: tuple[RemedyTrial, ...] = ()
    rescaled: Counts = Field(default_factory=dict)
    strengths: tuple[float, float] | None = None
    multiplied: dict[str, str] = Field(default_factory=dict)
    shifted: int = 0
    corrected: Counts = Field(default_factory=dict)
    learned: LearnedCodes | None = None
    outliers: tuple[OutlierRow, ...] = ()
    left: Counts = Field(default_factory=dict)
    moved: Number = None
