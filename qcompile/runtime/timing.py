"""How fast models run: two in turn for a ratio that a noisy machine cannot tilt, or one alone.

Both models get the same feeds and the same number of threads. With one thread both sessions live
side by side and single runs alternate. With more threads only one session lives at a time and
short series of runs alternate: worker threads of an idle session spin and would slow the other.

With one thread the clock is the thread's own: it stands still while another program has the core.
Measured with three times as many busy processes as cores, the ratio of a model to itself stayed
within 0.5 % of 1, against 13 % by the wall clock; on a quiet machine both clocks agree. Several
threads need the wall clock; there a series counts with its lower quartile.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.frozen import Frozen
from qcompile.numerics.intervals import Interval, median_interval
from qcompile.runtime.ort import Session
from qcompile.runtime.provider import CPU, Provider
from qcompile.samples import Feeds

MIN_PAIRS = 10
MAX_PAIRS = 2000

SETTLED = 0.005
"""Half width of the ratio's interval, as a share of the ratio, that ends a measurement early."""

_SETTLED_PAIRS = 50
"""The width is looked at each time that so many more pairs are there."""

_SHORTEST_SECONDS = 2e-3
"""A measurement repeats the run until it takes so long, or the clock would be what is measured."""
_WARM_UP_RUNS = 3

Clock = Callable[[], float]


class Timing(Frozen):
    """Two models timed in turn.

    Attributes:
        first_ms: Median time of a run of the first model, in milliseconds (see the module on
            what clock).
        second_ms: Median time of a run of the second model, in milliseconds.
        ratio: Median over pairs of first time / second time; above 1 the second is faster.
        interval: 95 % bootstrap interval of the ratio.
        pairs: Number of pairs.
        threads: Threads of each session.
    """

    first_ms: float
    second_ms: float
    ratio: float
    interval: Interval
    pairs: int
    threads: int


def time_pair(
    first: Path | ir.Model,
    second: Path | ir.Model,
    feeds: Feeds,
    *,
    threads: int = 1,
    seconds: float = 2.0,
    provider: Provider = CPU,
) -> Timing:
    """Time two models in turn, as engines (all optimizations on).

    Args:
        first: The reference, such as the FP model.
        second: The engine.
        feeds: One run's inputs, for both.
        threads: Threads of each session.
        seconds: Roughly how long to measure; at least ``MIN_PAIRS`` pairs are taken. With one
            thread, a third of it is enough where the ratio is settled by then.
        provider: Who runs both; one that is not the CPU is timed by the wall clock, side by side.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
        EngineError: A model cannot be loaded or run.
    """
    if threads == 1 or provider != CPU:
        pairs = _alternating(
            Session(first, threads=threads, provider=provider),
            Session(second, threads=threads, provider=provider),
            feeds,
            clock=_clock(threads) if provider == CPU else time.perf_counter,
            seconds=seconds,
        )
    else:
        pairs = _one_at_a_time(first, second, feeds, threads=threads, seconds=seconds)
    times = np.array(list(pairs))
    ratios = times[:, 0] / times[:, 1]
    ratio = float(np.median(ratios))
    return Timing(
        first_ms=1e3 * float(np.median(times[:, 0])),
        second_ms=1e3 * float(np.median(times[:, 1])),
        ratio=ratio,
        interval=median_interval(ratios) or Interval(ratio, ratio),
        pairs=len(times),
        threads=threads,
    )


def time_one(
    model: Path | ir.Model, feeds: Feeds, *, threads: int = 1, seconds: float = 1.0
) -> float:
    """Return the median time of a run of one model, in milliseconds.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
        EngineError: The model cannot be loaded or run.
    """
    session = Session(model, threads=threads, spinning=threads > 1)
    clock = _clock(threads)
    repeats = _warm(session, feeds, clock)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < MIN_PAIRS or (time.perf_counter() < end and len(times) < MAX_PAIRS):
        times.append(_seconds(session, feeds, repeats, clock))
    return 1e3 * float(np.median(times))


def _alternating(
    a: Session, b: Session, feeds: Feeds, *, clock: Clock, seconds: float
) -> Iterator[tuple[float, float]]:
    """Yield pairs of single measurements; every other pair starts with the second model."""
    repeats_a, repeats_b = _warm(a, feeds, clock), _warm(b, feeds, clock)
    started = time.perf_counter()
    ratios: list[float] = []
    while not _enough(ratios, time.perf_counter() - started, seconds):
        if len(ratios) % 2 == 0:
            time_a = _seconds(a, feeds, repeats_a, clock)
            time_b = _seconds(b, feeds, repeats_b, clock)
        else:
            time_b = _seconds(b, feeds, repeats_b, clock)
            time_a = _seconds(a, feeds, repeats_a, clock)
        yield time_a, time_b
        ratios.append(time_a / time_b)


def _enough(ratios: Sequence[float], elapsed: float, seconds: float) -> bool:
    """Return whether to end: enough pairs, or the time is over, or the ratio is settled."""
    if len(ratios) < MIN_PAIRS:
        return False
    if len(ratios) >= MAX_PAIRS or elapsed >= seconds:
        return True
    return elapsed >= seconds / 3 and len(ratios) % _SETTLED_PAIRS == 0 and _settled(ratios)


def _settled(ratios: Sequence[float]) -> bool:
    interval = median_interval(np.array(ratios))
    width = interval.high - interval.low if interval else np.inf
    return bool(width < 2 * SETTLED * np.median(ratios))


def _one_at_a_time(
    first: Path | ir.Model,
    second: Path | ir.Model,
    feeds: Feeds,
    *,
    threads: int,
    seconds: float,
) -> Iterator[tuple[float, float]]:
    """Yield ``MIN_PAIRS`` pairs of short series, each with a session of its own."""
    share = seconds / (2 * MIN_PAIRS)
    for count in range(MIN_PAIRS):
        order = (first, second) if count % 2 == 0 else (second, first)
        times = [_series(model, feeds, threads=threads, seconds=share) for model in order]
        yield (times[0], times[1]) if count % 2 == 0 else (times[1], times[0])


def _series(model: Path | ir.Model, feeds: Feeds, *, threads: int, seconds: float) -> float:
    session = Session(model, threads=threads, spinning=True)
    clock = _clock(threads)
    repeats = _warm(session, feeds, clock)
    end = time.perf_counter() + seconds
    times = [_seconds(session, feeds, repeats, clock) for _ in range(3)]
    while time.perf_counter() < end:
        times.append(_seconds(session, feeds, repeats, clock))
    return float(np.quantile(times, 0.25))


def _clock(threads: int) -> Clock:
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    return time.thread_time if threads == 1 and fine else time.perf_counter


def _warm(session: Session, feeds: Feeds, clock: Clock) -> int:
    """Run a few times; return how many runs a measurement needs."""
    times = [_seconds(session, feeds, 1, clock) for _ in range(_WARM_UP_RUNS)]
    return max(1, round(_SHORTEST_SECONDS / min(times)))


def _seconds(session: Session, feeds: Feeds, repeats: int, clock: Clock) -> float:
    started = clock()
    for _ in range(repeats):
        session.run(feeds)
    return (clock() - started) / repeats
