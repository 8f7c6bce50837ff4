"""Which nodes stay in float32 in a graph of half precision, and why: measured on samples.

A node computes in half unless its numbers leave the type's range, a sum that it forms does, or
rounding what goes in and comes out moves its result by more than rounding should. The criteria are
those of mixed-precision training (Micikevicius et al. 2018, arXiv:1710.03740, section 3.3: sums and
norms in float32), asked of the data instead of the operator's name.
"""

from collections.abc import Mapping

import onnx_ir as ir

from qcompile.graph.halves import HALVES, MOVES, Half, is_float32, largest_magnitude, newest_slots
from qcompile.graph.walk import constant, is_constant, is_op, release
from qcompile.planning.half_probe import (
    NORMS,
    SOFTMAXES,
    SQUARES,
    SUMS,
    Figures,
    errors_of_kept,
    figures,
)
from qcompile.planning.half_whole import HalfSwitches, to_blame
from qcompile.progress import Progress, Silent
from qcompile.samples import Samples, Subset, content_order

HEADROOM = 2.0
"""Other data than the samples may be so many times larger."""

UNITS = 6.0
"""A node's own error may be so many half spacings: 0.3 % in float16, 2.3 % in bfloat16. On the
models that were measured ordinary nodes lose 1 to 5; a variance from E[x^2] - E[x]^2 loses 11."""

MEASURED = 16
"""Samples that errors are measured on at most; what is largest is taken over all."""

WHOLE = 8
"""Of these, the samples on which the model's outputs are judged."""

OUTPUT_LIMIT = 0.05
"""What an output may lose, as relative L2 (26 dB); ordinary models lose up to 0.02 in bfloat16."""

HOPS = 6
"""How far upstream of a node float32 may reach for its inputs' sake."""

UNMEASURED = (
    "GroupNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "ReduceLogSum",
    "ReduceLogSumExp",
)
"""Operators that stay in float32 because the sums inside them are not measured."""

UNSEEN = (
    *NORMS,
    *SOFTMAXES,
    *SQUARES,
    *SUMS,
    *UNMEASURED,
    "BatchNormalization",
    "GlobalAveragePool",
    "ReduceMean",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)
"""Operators that stay in float32 where no sample shows what they do."""


def float32_nodes(
    model: ir.Model,
    samples: Samples | None,
    dtype: str,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Return the nodes that stay in float32, each with its reason, in graph order.

    Args:
        model: The float graph, typed and named; it is not changed.
        samples: The data that decides; None leaves norms, softmax and reductions in float32.
        dtype: float16 or bfloat16.
        jobs: Samples measured at once; the result does not depend on it.
        progress: Hears "plan: half precision", and what could not be measured.

    Raises:
        DataError: A sample cannot be read.
        EngineError: ONNX Runtime cannot run the model.
    """
    half, progress = HALVES[dtype], progress or Silent()
    if samples is None or not len(samples):
        progress.notice(
            f"{dtype}: no samples to measure; norms, softmax and reductions stay in float32"
        )
        found = {str(n.name): f"no samples show what {n.op_type} does" for n in _unseen(model)}
        return _ordered(model, found)
    order = content_order(samples)[:MEASURED]
    if len(order) < len(samples):
        progress.notice(f"{dtype}: errors were measured on {len(order)} of {len(samples)} samples")
    seen = figures(model, half, samples, order, jobs, progress)
    kept = _by_figures(model, half, seen)
    errors: dict[str, float] = {}
    for _ in range(HOPS):
        errors = errors_of_kept(model, half, kept, samples, order, jobs)
        more = _makers(model, half, kept, errors)
        if not more:
            break
        kept |= more
    else:
        worst = max(errors, key=lambda name: errors[name])
        progress.notice(
            f"{dtype}: {worst} loses {errors[worst]:.2g} (relative L2) even with {HOPS} nodes "
            "before it in float32"
        )
    kept |= _adding_up(model, half, kept, Subset(samples, order[:WHOLE]), jobs, progress)
    return _ordered(model, kept)


def _adding_up(
    model: ir.Model,
    half: Half,
    kept: Mapping[str, str],
    samples: Samples,
    jobs: int,
    progress: Progress,
) -> dict[str, str]:
    """Return the nodes that must stay in float32 for the model's outputs to be right.

    Where the blame is shared by many nodes none is returned, with a notice.
    """
    switches = HalfSwitches(model, half, kept, samples, jobs)
    before = switches.error(())
    if before <= OUTPUT_LIMIT:
        return {}
    found = to_blame(switches, OUTPUT_LIMIT) or []
    after = switches.error(found)
    if not found or after > OUTPUT_LIMIT:
        progress.notice(
            f"{half.name}: the outputs lose {before:.2g} (relative L2), and no few nodes are to "
            "blame: see whether --max-drop or --min-agreement holds"
        )
        return {}
    why = (
        f"in {half.name} the outputs lose {before:.2g} (relative L2; limit {OUTPUT_LIMIT:g}), "
        f"{after:.2g} with {len(found)} more node(s) in float32"
    )
    return dict.fromkeys(found, why)


def _unseen(model: ir.Model) -> list[ir.Node]:
    found = [n for n in model.graph if n.op_type in UNSEEN and n.domain in ("", "com.microsoft")]
    return [n for n in found if any(map(is_float32, (*n.inputs, *n.outputs)))]


def _ordered(model: ir.Model, kept: Mapping[str, str]) -> dict[str, str]:
    return {str(n.name): kept[str(n.name)] for n in model.graph if n.name in kept}


def _by_figures(model: ir.Model, half: Half, seen: Figures) -> dict[str, str]:
    """Return the nodes whose own figures say that half is not enough."""
    constants: dict[ir.Value, float] = {}
    kept: dict[str, str] = {}
    for node in model.graph:
        if not newest_slots(node, half):
            continue
        reason = (
            _why_beyond(node, half, seen, constants)
            or _why_sums(node, half, seen)
            or _why_lossy(node, half, seen)
        )
        if reason:
            kept[str(node.name)] = reason
    return kept


def _why_beyond(
    node: ir.Node, half: Half, seen: Figures, constants: dict[ir.Value, float]
) -> str | None:
    """Say which input or output is too large for the type."""
    limit = half.largest / HEADROOM
    for value in (*node.inputs, *node.outputs):
        if value is None or not is_float32(value):
            continue
        if is_constant(value):
            if value not in constants:
                array = constant(value)
                constants[value] = 0.0 if array is None else largest_magnitude(array)
                release(value.const_value)
            if constants[value] > half.largest:
                return f"{value.name} holds {constants[value]:.3g}, beyond {half.largest:.5g}"
        elif seen.largest.get(value.name or "", 0.0) > limit:
            return (
                f"{value.name} reaches {seen.largest[value.name or '']:.3g}; {half.name} ends at "
                f"{half.largest:.5g}, and {HEADROOM:g} times less is left for other data"
            )
    return None


def _why_sums(node: ir.Node, half: Half, seen: Figures) -> str | None:
    """Say which sum inside the node is too large, too long, or too small to divide by."""
    name = str(node.name)
    unranked = is_op(node, *NORMS) and name not in seen.variances
    if unranked or is_op(node, *UNMEASURED):
        return f"the sums inside {node.op_type} could not be measured"
    if seen.sums.get(name, 0.0) > half.largest / HEADROOM:
        return (
            f"it sums up to {seen.sums[name]:.3g}; {half.name} ends at {half.largest:.5g}, "
            f"and {HEADROOM:g} times less is left for other data"
        )
    if seen.terms.get(name, 0.0) > 2**half.bits:
        return (
            f"it sums {seen.terms[name]:.0f} terms; from {2**half.bits} on, "
            f"a sum in {half.name} stands still"
        )
    variance, epsilon = seen.variances.get(name), _epsilon(node)
    if variance is not None and max(variance / HEADROOM, epsilon) < half.smallest:
        return (
            f"it divides by a variance of {variance:.2g} with epsilon {epsilon:.2g}; "
            f"the smallest normal {half.name} is {half.smallest:.2g}"
        )
    return None


def _why_lossy(node: ir.Node, half: Half, seen: Figures) -> str | None:
    error, limit = seen.errors.get(str(node.name), 0.0), _limit(half)
    if error <= limit:
        return None
    return (
        f"in {half.name} it alone loses {error:.2g} of its output (relative L2; limit {limit:.2g})"
    )


def _epsilon(node: ir.Node) -> float:
    return node.attributes.get_float("epsilon", 1e-5)


def _makers(
    model: ir.Model, half: Half, kept: Mapping[str, str], errors: Mapping[str, float]
) -> dict[str, str]:
    """Return the nodes that must give float32 for kept nodes to lose no more than the limit."""
    found: dict[str, str] = {}
    waiting = [
        (node, node) for node in model.graph if errors.get(node.name or "", 0.0) > _limit(half)
    ]
    while waiting:
        node, reader = waiting.pop()
        for value in node.inputs:
            if value is None or not is_float32(value) or is_constant(value):
                continue
            maker = value.producer()
            if maker is None or str(maker.name) in found:
                continue
            if str(maker.name) not in kept and newest_slots(maker, half):
                found[str(maker.name)] = (
                    f"{reader.name} reads {value.name} and loses "
                    f"{errors[str(reader.name)]:.2g} where {half.name} reaches it"
                )
                if is_op(maker, *MOVES):
                    waiting.append((maker, reader))
    return found


def _limit(half: Half) -> float:
    return UNITS * half.spacing / 2
