"""How ONNX Runtime would split a graph between a phone's execution provider and its CPU one.

A prediction: it rests on the graph and on tables (``targets.providers``), no device is asked. The
pieces are those of onnxruntime/core/providers/partitioning_utils.cc: in topological order a piece
takes every unit that the provider takes, and ends where all that is ready has to wait for the CPU.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from qcompile.frozen import Frozen
from qcompile.graph.walk import is_op, subgraphs
from qcompile.planning.demands import SIZES, Judge, operator_key, shipped_operators
from qcompile.planning.node_units import NodeUnit, node_units
from qcompile.targets.execution_provider import Provider

_CPU = -1


class Partition(Frozen):
    """Where the nodes of a model would run: predicted, not measured.

    Attributes:
        kind: What this is, for those who read it in a report.
        provider: As in ``--ep``.
        units: Node units of the main graph: a node with its Q and DQ counts as one.
        pieces: Units in each piece that the provider takes, in the order they run.
        crossings: Tensors that go from one provider or piece to another in each run.
        fallbacks: Name of each node that stays on the CPU, to the reason, in graph order.
        notes: What the prediction leaves open.
    """

    kind: Literal["predicted"] = "predicted"
    provider: str
    units: int
    pieces: tuple[int, ...]
    crossings: int
    fallbacks: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> int:
        """Units that the provider takes."""
        return sum(self.pieces)

    def reasons(self) -> list[tuple[str, int]]:
        """Return each reason and the number of units it keeps on the CPU, the most first."""
        return Counter(self.fallbacks.values()).most_common()


def predict(model: ir.Model, provider: Provider, *, batch: int | None = None) -> Partition:
    """Predict how the graph is split; it is left as it is.

    Args:
        model: The emitted graph.
        provider: An entry of ``PROVIDERS``.
        batch: The first size of each input, where the model leaves it open and the app fixes it.

    Raises:
        RuntimeMissingError: The provider's list of operators is in onnxruntime, which is missing.
    """
    model = _with_sizes(model, batch)
    units = node_units(model, quantized=provider.units)
    judge = Judge(provider, model)
    reasons = {unit.node: judge.reason(unit) for unit in units}
    _join_fused(units, reasons, provider)
    readers = _readers(units)
    on_codes = tuple(_on_codes_alone(units, readers, reasons, provider))
    places = _places(units, readers, reasons, provider)
    pieces = Counter(place for place in places if place != _CPU)
    return Partition(
        provider=provider.name,
        units=len(units),
        pieces=tuple(pieces[number] for number in sorted(pieces)),
        crossings=_crossings(units, places),
        fallbacks={
            _name(unit, number): reasons[unit.node]
            for number, unit in enumerate(units)
            if places[number] == _CPU
        },
        notes=(*_notes(model, units, reasons, provider), *on_codes),
    )


def _with_sizes(model: ir.Model, batch: int | None) -> ir.Model:
    """Return a copy with all shapes that can be inferred; it shares the weights."""
    copy = model.clone()
    for value in copy.graph.inputs:
        if batch is not None and value.shape and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([batch, *list(value.shape)[1:]])
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    return copy


def _join_fused(units: Sequence[NodeUnit], reasons: dict[ir.Node, str], provider: Provider) -> None:
    """Let float activations go with the node that they vanish into."""
    alone = {unit.node for unit in units if not unit.quantized}
    for unit in units:
        value = unit.node.inputs[0] if unit.node.inputs else None
        maker = None if value is None else value.producer()
        if maker in alone and is_op(maker, *provider.fused.get(unit.node.op_type, ())):
            reasons[unit.node] = reasons[maker]


def _readers(units: Sequence[NodeUnit]) -> list[list[int]]:
    """Return for each unit those that read what it makes, in order, each once."""
    makers = {value: n for n, unit in enumerate(units) for value in unit.outputs}
    found: list[dict[int, None]] = [{} for _ in units]
    for number, unit in enumerate(units):
        for value in unit.inputs:
            if value in makers:
                found[makers[value]][number] = None
    return [list(numbers) for numbers in found]


def _places(
    units: Sequence[NodeUnit],
    readers: Sequence[Sequence[int]],
    reasons: dict[ir.Node, str],
    provider: Provider,
) -> list[int]:
    """Return the piece of each unit, or that it stays on the CPU (with its reason noted)."""
    places = [_CPU] * len(units)
    taken = [not reasons[unit.node] for unit in units]
    kept = 0
    for piece in _pieces(taken, readers):
        if {units[number].node.op_type for number in piece} <= provider.dropped:
            for number in piece:
                reasons[units[number].node] = "alone it is not worth the way there"
            continue
        for number in piece:
            places[number] = kept
        kept += 1
    return places


def _pieces(taken: Sequence[bool], readers: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the pieces of a graph, each as large as it can be in topological order."""
    waits = Counter(reader for found in readers for reader in found)
    ready = deque(number for number in range(len(taken)) if not waits[number])
    later: deque[int] = deque()
    piece: list[int] = []
    behind: set[int] = set()
    while ready or later:
        if not ready:
            if piece:
                yield piece
            ready, later, piece, behind = later, deque(), [], set()
            continue
        number = ready.popleft()
        if not taken[number] and number in behind:
            later.append(number)
            continue
        if taken[number]:
            piece.append(number)
            behind.update(readers[number])
        for reader in readers[number]:
            waits[reader] -= 1
            if not waits[reader]:
                ready.append(reader)
    if piece:
        yield piece


def _crossings(units: Sequence[NodeUnit], places: Sequence[int]) -> int:
    """Count the tensors that go from one place to another, once for each place they go to."""
    makers = {
        value: place for unit, place in zip(units, places, strict=True) for value in unit.outputs
    }
    moves = {
        (value, place)
        for unit, place in zip(units, places, strict=True)
        for value in unit.inputs
        if value is not None and makers.get(value, place) != place
    }
    return len(moves)


def _notes(
    model: ir.Model,
    units: Sequence[NodeUnit],
    reasons: Mapping[ir.Node, str],
    provider: Provider,
) -> Iterator[str]:
    inner = sum(g.num_nodes() for node in model.graph for g in subgraphs(node))
    if inner:
        yield f"{inner} nodes inside If, Loop or Scan are not looked at"
    if waiting := sum(SIZES in reason for reason in reasons.values()):
        yield (
            f"{SIZES} keep {waiting} of {len(units)} units on the CPU: fix those of the inputs "
            "(onnxruntime.tools.make_dynamic_shape_fixed)"
        )
    if provider.shipped:
        listed = shipped_operators(provider.shipped)
        plain = {u.node.op_type: operator_key(u.node) for u in units if not reasons[u.node]}
        for op, key in sorted(plain.items()):
            if listed.get(key) and op not in provider.plain:
                yield f"{op}, not looked at: {listed[key]}"


def _on_codes_alone(
    units: Sequence[NodeUnit],
    readers: Sequence[Sequence[int]],
    reasons: Mapping[ir.Node, str],
    provider: Provider,
) -> Iterator[str]:
    """Say what becomes of the graph where the device takes no floats."""
    floats = {unit.node for unit in units if not reasons[unit.node] and _computes_floats(unit)}
    if not (provider.integer_only and floats):
        return
    why = {unit.node: reasons[unit.node] or "float" * (unit.node in floats) for unit in units}
    places = _places(units, readers, why, provider)
    pieces = len({place for place in places if place != _CPU})
    rest = f"the rest in {pieces} piece{'s' * (pieces > 1)}" if pieces else "nothing"
    yield (
        f"{len(floats)} of {len(units)} units compute in float: {provider.integer_only} leaves "
        f"them to the CPU and takes {rest}, with {_crossings(units, places)} tensors a run to move"
    )


def _computes_floats(unit: NodeUnit) -> bool:
    node = unit.node
    floating = any(v.dtype is not None and v.dtype.is_floating_point() for v in node.outputs)
    return floating and not unit.quantized and not is_op(node, "DequantizeLinear")


def _name(unit: NodeUnit, number: int) -> str:
    return unit.node.name or f"{unit.node.op_type} #{number}"
