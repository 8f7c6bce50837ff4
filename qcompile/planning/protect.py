"""Ranges and precision by measured effect on the outputs: what rounds too loudly stays in float.

The noise of the rounded model is close to the sum of the noises of its nodes rounded alone, for
rounding errors are nearly independent. So each node is measured alone; those that add far more
noise than arithmetic are left in float, and the ranges of the loudest that remain are tried again.
"""

from collections.abc import Mapping
from dataclasses import replace

from qcompile.planning.ranges import Choice
from qcompile.planning.switchboard import Switchboard
from qcompile.progress import Progress

SILENT = 5e-4
"""Noise over signal (33 dB) below which ranges are not tried again."""

QUIET = 2e-3
"""Noise over signal (27 dB) below which nothing is left in float for accuracy's sake."""

SHARE = 0.02
"""A node must cause so much of all noise before it is left in float."""

WORTH = 2.5
"""... and so many times its share of the arithmetic, conversions included."""

FLOAT_WORK = 0.2
"""Largest share of the arithmetic, conversions included, that is spent in float for accuracy."""

RETRIED = 8
"""Loudest nodes whose ranges are tried again, by their effect on the outputs."""

GAIN = 0.7
"""Leaving nodes in float must bring the noise down to this share (1.5 dB): float costs time."""

BETTER = 0.97
"""A changed range must lower the noise by this factor."""

Ranges = dict[str, tuple[float, float]]


def best_start(
    board: Switchboard, candidates: Mapping[str, Mapping[str, Choice]]
) -> dict[str, Choice]:
    """Return the set of ranges that gives the least noise with everything rounded.

    Args:
        board: Measures.
        candidates: Label to a full set of ranges; the first one wins ties.
    """
    noise = {
        label: board.noise(_ranges(choices), board.units) for label, choices in candidates.items()
    }
    first = next(iter(candidates))
    best = min(noise, key=lambda label: noise[label])
    return dict(candidates[best if noise[best] < BETTER * noise[first] else first])


def all_noise(board: Switchboard, choices: Mapping[str, Choice]) -> float:
    """Return noise over signal at the outputs with everything rounded."""
    return board.noise(_ranges(choices), board.units)


def unit_noise(
    board: Switchboard, choices: Mapping[str, Choice], progress: Progress
) -> tuple[float, dict[str, float]]:
    """Measure all units together and, where that is loud, each alone.

    Args:
        board: Measures.
        choices: The range of each activation.
        progress: Hears "plan: accuracy".

    Returns:
        Noise over signal with everything rounded, and of each unit alone (none where it is quiet).
    """
    ranges = _ranges(choices)
    total = board.noise(ranges, board.units)
    alone: dict[str, float] = {}
    if total > SILENT:
        for done, unit in enumerate(board.units):
            progress.step("plan: accuracy", done, len(board.units))
            alone[unit] = board.noise(ranges, [unit])
        progress.step("plan: accuracy", len(board.units), len(board.units))
    return total, alone


def too_loud(
    alone: Mapping[str, float],
    cost: Mapping[str, float],
    arithmetic: float,
    total: float,
    scheme: str,
) -> dict[str, str]:
    """Choose the nodes to leave in float, loudest for what they cost there first.

    Args:
        alone: Noise of each unit alone.
        cost: Node to its work in float, in multiply-adds; see ``pays.float_work``.
        arithmetic: Multiply-adds of the whole model.
        total: Noise with everything rounded.
        scheme: int8 or fp8, for the reason.

    Returns:
        Node to the reason.
    """
    if total <= QUIET or not alone:
        return {}
    noise = left = sum(alone.values())
    spent = 0.0
    kept: dict[str, str] = {}
    price = {unit: cost.get(unit, 0.0) / (arithmetic or 1.0) for unit in alone}
    for unit in sorted(alone, key=lambda u: -alone[u] / (price[u] + 0.01)):
        share = alone[unit] / noise
        if left <= QUIET:
            break
        if share < SHARE or share < WORTH * price[unit] or spent + price[unit] > FLOAT_WORK:
            continue
        kept[unit] = (
            f"in {scheme} it alone causes {share:.0%} of the noise at the outputs; "
            f"in float it costs {price[unit]:.1%} of the arithmetic"
        )
        left, spent = left - alone[unit], spent + price[unit]
    return kept


def retried(
    board: Switchboard,
    choices: dict[str, Choice],
    alternatives: Mapping[str, Mapping[str, Choice]],
    alone: Mapping[str, float],
) -> dict[str, Choice]:
    """Try other ranges for what the loudest units read; keep what lowers the noise at the outputs.

    Args:
        board: Measures.
        choices: The range of each activation.
        alternatives: Label to other ranges.
        alone: Noise of units alone, to find the loudest that the board still has.
    """
    on = board.units
    units = [unit for unit in sorted(alone, key=lambda u: -alone[u]) if unit in board.tensors]
    units = units[:RETRIED]
    noise = board.noise(_ranges(choices), on)
    for name in dict.fromkeys(name for unit in units for name in board.tensors[unit]):
        tried = {(choices[name].low, choices[name].high)}
        for others in alternatives.values():
            other = others.get(name)
            if other is None or (other.low, other.high) in tried:
                continue
            tried.add((other.low, other.high))
            changed = {**choices, name: replace(other, errors=choices[name].errors)}
            found = board.noise(_ranges(changed), on)
            if found < BETTER * noise:
                choices, noise = changed, found
    return choices


def _ranges(choices: Mapping[str, Choice]) -> Ranges:
    return {name: (choice.low, choice.high) for name, choice in choices.items()}
