"""Gates: what an engine must reach before it is put in place."""

import math

from qcompile.compare.results import Comparison, OutputError, Score
from qcompile.frozen import Frozen
from qcompile.numerics.intervals import Interval
from qcompile.recipe import Gates
from qcompile.runtime.timing import Timing


class GateResult(Frozen):
    """One gate and what was measured.

    Attributes:
        name: The option, such as ``min-sqnr``.
        wanted: The limit, in the unit of the measurement.
        measured: None where nothing could be measured, which fails, or where it is infinite.
        interval: 95 % interval of the measurement.
        passed: Whether the gate is kept.
        note: What was measured, or why nothing could be.
        bound: Measured was what the thing can be at worst: the note says why.
    """

    name: str
    wanted: float
    measured: float | None
    interval: Interval | None = None
    passed: bool
    note: str = ""
    bound: bool = False


def check_gates(
    gates: Gates, comparison: Comparison | None, timing: Timing | None
) -> list[GateResult]:
    """Judge an engine.

    An explicit gate is judged on the measured value itself, not on an end of its interval; what
    cannot be measured fails. Without ``min_speedup`` and ``allow_slower``, an engine fails as
    slower than float where the whole interval of the ratio is below 1.

    Args:
        gates: What is wanted.
        comparison: The engine against the FP model; None if there were no samples.
        timing: FP first, engine second; None if nothing was timed.
    """
    results = []
    if gates.min_sqnr is not None:
        results.append(_sqnr(gates.min_sqnr, comparison))
    if gates.min_agreement is not None:
        results.append(_agreement(gates.min_agreement, comparison))
    if gates.max_drop is not None:
        results.append(_drop(gates.max_drop, comparison))
    if gates.min_speedup is not None:
        results.append(_speedup(gates.min_speedup, timing))
    elif timing is not None and not gates.allow_slower:
        results.append(_not_slower(timing))
    return results


def _sqnr(wanted: float, comparison: Comparison | None) -> GateResult:
    name = "min-sqnr"
    outputs = [o for o in comparison.outputs if o.equal is None] if comparison else []
    if not outputs:
        return _unmeasured(name, wanted, "no floating-point output was compared")
    worst = min(outputs, key=_sqnr_value)
    value = _sqnr_value(worst)
    return GateResult(
        name=name,
        wanted=wanted,
        measured=worst.sqnr_db,
        interval=worst.sqnr_interval,
        passed=value >= wanted,
        note=f"worst output {worst.name!r}" + (f": {worst.note}" if worst.note else ""),
    )


def _sqnr_value(output: OutputError) -> float:
    if output.identical:
        return math.inf
    return -math.inf if output.sqnr_db is None else output.sqnr_db


def _agreement(wanted: float, comparison: Comparison | None) -> GateResult:
    name = "min-agreement"
    top = [a for a in comparison.agreements if a.name == "top-1"] if comparison else []
    if not top:
        return _unmeasured(name, wanted, "no output holds class scores")
    worst = min(top, key=lambda agreement: agreement.share)
    return GateResult(
        name=name,
        wanted=wanted,
        measured=worst.share,
        interval=worst.interval,
        passed=worst.share >= wanted,
        note=f"top-1 of output {worst.output!r}, {worst.count} decisions",
    )


def _drop(wanted: float, comparison: Comparison | None) -> GateResult:
    """Judge the metric if there is one, else the top-1 accuracy that drops most.

    Where lower is better, as for perplexity, the drop is the rise. Without labels, decisions that
    differ stand for it: no accuracy drops by more than their share.
    """
    name = "max-drop"
    scores = comparison.scores if comparison else ()
    judged = [s for s in scores if not s.output] or [
        s for s in scores if s.name.startswith("top-1")
    ]
    if not judged:
        return _bounded_drop(name, wanted, comparison)
    undefined = [s for s in judged if s.difference is None]
    if undefined:
        return _unmeasured(name, wanted, undefined[0].note)
    worst = max(judged, key=_loss)
    interval = worst.interval
    if interval and not worst.lower_is_better:
        interval = Interval(-interval.high, -interval.low)
    return GateResult(
        name=name,
        wanted=wanted,
        measured=_loss(worst),
        interval=interval,
        passed=_loss(worst) <= wanted,
        note=f"{worst.name}: {worst.float_value:.6g} to {worst.engine_value:.6g}",
    )


def _bounded_drop(name: str, wanted: float, comparison: Comparison | None) -> GateResult:
    bound = _agreement(0.0, comparison)
    if bound.measured is None:
        return _unmeasured(name, wanted, "there is no accuracy: give labels or --metric")
    ends = bound.interval
    return GateResult(
        name=name,
        wanted=wanted,
        measured=1 - bound.measured,
        interval=Interval(1 - ends.high, 1 - ends.low) if ends else None,
        passed=1 - bound.measured <= wanted,
        note=f"without labels: decisions that differ, {bound.note}: no accuracy drops by more",
        bound=True,
    )


def _loss(score: Score) -> float:
    difference = score.difference or 0.0
    return difference if score.lower_is_better else -difference


def _speedup(wanted: float, timing: Timing | None) -> GateResult:
    name = "min-speedup"
    if timing is None:
        return _unmeasured(name, wanted, "nothing was timed")
    return GateResult(
        name=name,
        wanted=wanted,
        measured=timing.ratio,
        interval=timing.interval,
        passed=timing.ratio >= wanted,
        note=_times(timing),
    )


def seems_slower(timing: Timing) -> bool:
    """Whether the second model is slower than the first beyond the interval of the ratio."""
    return timing.ratio < 1 and timing.interval.high < 1


def _not_slower(timing: Timing) -> GateResult:
    return GateResult(
        name="not-slower",
        wanted=1.0,
        measured=timing.ratio,
        interval=timing.interval,
        passed=not seems_slower(timing),
        note=f"{_times(timing)}; --allow-slower takes it as it is",
    )


def _times(timing: Timing) -> str:
    return f"{timing.first_ms:.3f} ms to {timing.second_ms:.3f} ms, {timing.threads} thread(s)"


def _unmeasured(name: str, wanted: float, note: str) -> GateResult:
    return GateResult(name=name, wanted=wanted, measured=None, passed=False, note=note)
