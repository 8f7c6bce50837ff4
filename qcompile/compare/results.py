"""What a comparison found: plain data without NaN or infinity; a note says why a number is None."""

import math

from qcompile.frozen import Frozen
from qcompile.numerics.intervals import Interval


class OutputError(Frozen):
    """How far one output is from the FP model's, over all samples.

    Attributes:
        name: The output.
        dtype: Its element type in the FP model.
        sqnr_db: Signal to quantization noise in dB; None for what is compared by equality, and
            where it has no finite value (identical, broken, differing shapes).
        sqnr_interval: Its 95 % bootstrap interval over samples.
        cosine: Cosine of the angle, -1 to 1.
        max_abs_error: In the output's own unit.
        relative_l2: Root of noise over signal.
        equal: Share of equal elements, for integer, bool and string outputs.
        identical: No element of any sample differs.
        broken: Elements that are NaN or infinite in one model only.
        mismatched: Samples in which the shapes differ; they are in none of the numbers above.
        note: Why a number is None, or what else must be known.
    """

    name: str
    dtype: str
    sqnr_db: float | None = None
    sqnr_interval: Interval | None = None
    cosine: float | None = None
    max_abs_error: float | None = None
    relative_l2: float | None = None
    equal: float | None = None
    identical: bool
    broken: int = 0
    mismatched: int = 0
    note: str = ""


class Agreement(Frozen):
    """How often the engine decides as the FP model does.

    Attributes:
        name: ``top-1``: the same best class; ``top-5``: FP's best class is among the engine's
            best five.
        output: The output with the class scores.
        share: 0 to 1.
        interval: 95 % interval: Wilson's for independent rows, by bootstrap over samples where a
            sample has many positions (tokens, pixels).
        count: Number of decisions.
    """

    name: str
    output: str
    share: float
    interval: Interval | None
    count: int


class Score(Frozen):
    """An accuracy or a metric, of both models on the same samples.

    Attributes:
        name: ``top-1 accuracy``, ``top-5 accuracy``, ``perplexity`` or ``module:callable``.
        output: The output with the class scores; empty for a metric.
        float_value: Of the FP model.
        engine_value: Of the engine.
        difference: Engine minus FP.
        interval: Paired 95 % interval of the difference.
        float_interval: 95 % interval of a metric of the FP model.
        engine_interval: The same of the engine.
        lower_is_better: A rise is a loss; of accuracies, a fall is.
        count: Number of decisions, or of samples.
        note: Why a number is None.
    """

    name: str
    output: str = ""
    float_value: float | None
    engine_value: float | None
    difference: float | None
    interval: Interval | None
    float_interval: Interval | None = None
    engine_interval: Interval | None = None
    lower_is_better: bool = False
    count: int
    note: str = ""


class Comparison(Frozen):
    """A model against the FP model on the same samples."""

    samples: int
    outputs: tuple[OutputError, ...]
    agreements: tuple[Agreement, ...] = ()
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()


def finite(value: float) -> float | None:
    """Return the value, or None where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def finite_interval(low: float, high: float) -> Interval | None:
    """Return the interval, or None where an end is NaN or infinite."""
    return Interval(low, high) if math.isfinite(low) and math.isfinite(high) else None
