"""Sections of the report about what was measured: outputs, layers, weights, time, gates."""

from typing import Literal

from pydantic import Field

from qcompile.report.section import Interval, Number, Section


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
        inherited: Relative L2 error at the layer's output that comes from earlier layers' codes, on
            held-back samples; None where nobody looked.
        left: What the weight leaves of it before it is rounded; ``errors`` are those of rounding.
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
    inherited: Number = None
    left: Number = None


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
