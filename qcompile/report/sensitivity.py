"""What sensitivity answers. Plain data, like a report."""

from pydantic import Field

from qcompile.report.section import Counts, Number, Section


class EffectRow(Section):
    """What rounding one node, or all of them, does, and what it is worth.

    Attributes:
        name: The node; empty for a total.
        op: Its operator.
        sqnr_db: Mean over outputs; None where nothing differs, or where an element is broken.
        broken: An output element becomes NaN or infinite.
        share: Of the noise that all nodes make alone, summed.
        score: Of the rounded model, by the metric.
        loss: By which the score is worse than that of the float model; None where undefined.
        float_ms: Time of its kernels in the float model; None where they are fused into others'.
        rounded_ms: The same in the built one, conversions aside.
        work: Share of the multiply-adds of the model.
    """

    name: str = ""
    op: str = ""
    sqnr_db: Number = None
    broken: bool = False
    share: Number = None
    score: Number = None
    loss: Number = None
    float_ms: Number = None
    rounded_ms: Number = None
    work: Number = None


class SensitivityReport(Section):
    """The layers of a model, the one that loses most by being rounded alone first.

    Attributes:
        data: What the layers were measured on.
        samples: So many of it.
        metric: That the layers are ordered by; empty: by noise.
        float_score: Of the float model.
        together: All of them rounded at once.
        summed: What they do alone, summed.
        moved: Nodes that only move codes, or vanish into the rounding before them.
        in_float: Why nodes stay in float anyway, to their number.
        timing: How times were measured, or why they were not.
        conversion_ms: Time of what converts between floats and codes in the built model.
    """

    model: str
    data: str
    target: str
    device: str
    scheme: str
    samples: int
    metric: str = ""
    float_score: Number = None
    layers: tuple[EffectRow, ...] = ()
    together: EffectRow = EffectRow()
    summed: EffectRow = EffectRow()
    moved: int = 0
    in_float: Counts = Field(default_factory=dict)
    timing: str = ""
    conversion_ms: Number = None
    notices: tuple[str, ...] = ()
