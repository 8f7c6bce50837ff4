"""Weights of few bits in ONNX Runtime's own product: MatMulNBits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_initializer, drop_unread, lazy_tensor, take_over
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.numerics import nbits
from qcompile.passes.insert_qdq import NO_PLAN
from qcompile.passes.weight_places import Load, Permuted, Place, places, unsolved
from qcompile.plan import Plan

CONTRIB = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class InsertMatmulNbits(GraphPass):
    """Replace products whose weights are planned in few bits.

    Before: ``y = MatMul(x, W)`` or ``y = Gemm(x, W, b)``, W read either way.
    After:  ``y = com.microsoft::MatMulNBits(x, W.codes, W.scale, W.zero_point, -, b)``.

    Symmetric weights have no zero points: the operator's default is the middle code. A bias that
    has not one number a column is added by an Add. ``accuracy_level`` is the plan's: 4 computes
    with int8 activations, 0 with those of the graph.

    Columns in another order read ``Gather(x, order)``, made once for each x and order. Codes and
    scales are packed while the file is written. A shared weight is packed once.
    Visits: the main graph. Leaves: nodes in subgraphs, Conv, weights in two layouts, types without
    kernels (bfloat16 on CPU), Gemm with factors; planned weights of another form.
    """

    name: ClassVar[str] = "insert-matmul-nbits"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED, Fact.INPUTS_SCALED})
    effect: ClassVar[Effect] = Effect.LOSSY

    plan: Plan = field(default=NO_PLAN, repr=False, compare=False)
    solved: Load = field(default=unsolved, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Find every planned node of this form, then replace each."""
        found = places(model, self.plan, self.refuse, "nbits")
        writer = _Writer(model, self.solved)
        for place in found:
            writer.replace(place)
        if found:
            model.opset_imports.setdefault(CONTRIB, 1)
        return bool(found)


class _Writer:
    def __init__(self, model: ir.Model, solved: Load) -> None:
        self.graph = model.graph
        self.names = Names(model)
        self.solved = solved
        self.permuted = Permuted(model.graph, self.names)
        self.weights: dict[ir.Value, list[ir.Value | None]] = {}

    def replace(self, place: Place) -> None:
        """Put the operator in the place of a node."""
        node, weight = place.node, place.weight
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        # Its sixth input; a Gemm may add other shapes.
        inside = bias is not None and bias.shape is not None and tuple(bias.shape) == (place.rows,)
        if weight not in self.weights:
            self.weights[weight] = self._packed(place)
        inputs = [self.permuted.value(place, self.solved), *self.weights[weight]]
        product = ir.node(
            "MatMulNBits",
            [*inputs, *[None] * (5 - len(inputs)), bias] if inside else inputs,
            attributes=_attributes(place),
            domain=CONTRIB,
            name=self.names.fresh(node, "MatMulNBits"),
        )
        self.graph.insert_before(node, product)
        result = product.outputs[0]
        if bias is not None and not inside:
            result = self._sum(node, result, bias)
        take_over(result, node.outputs[0])
        self.graph.remove(node, safe=True)
        drop_unread(weight)

    def _sum(self, node: ir.Node, product: ir.Value, bias: ir.Value) -> ir.Value:
        """Add a bias that the operator does not take."""
        old = node.outputs[0]
        product.name = self.names.fresh(old, "product")
        product.type, product.shape = old.type, old.shape
        add = ir.node("Add", [product, bias], name=self.names.fresh(node, "Add"))
        self.graph.insert_before(node, add)
        return add.outputs[0]

    def _packed(self, place: Place) -> list[ir.Value | None]:
        """Return codes, scales and, where the format has some, zero points."""
        rows, form = place.rows, place.plan.format()
        bits, size = nbits.storage_bits(form), nbits.block_size(form, place.columns)
        blocks = -(-place.columns // size)
        uint8 = ir.DataType.UINT8
        codes = self._tensor(
            place, "codes", uint8, (rows, blocks, size * bits // 8), lambda w: w.codes
        )
        scales = self._tensor(place, "scale", place.dtype, (rows, blocks), lambda w: w.scales)
        if form.symmetric:
            return [codes, scales]
        packed = -(-blocks * bits // 8)
        return [codes, scales, self._tensor(place, "zero_point", uint8, (rows, packed), _zeros)]

    def _tensor(
        self,
        place: Place,
        what: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        part: Callable[[nbits.PackedWeight], np.ndarray],
    ) -> ir.Value:
        solved, name = self.solved, self.names.fresh(place.weight, what)

        def compute() -> np.ndarray:
            return part(nbits.pack(place.load_scaled(solved)))

        return add_initializer(self.graph, lazy_tensor(name, dtype, shape, compute))


def _zeros(weight: nbits.PackedWeight) -> np.ndarray:
    assert weight.zeros is not None  # noqa: S101 - the format is asymmetric
    return weight.zeros


def _attributes(place: Place) -> dict[str, int]:
    form = place.plan.format()
    return {
        "K": place.columns,
        "N": place.rows,
        "bits": nbits.storage_bits(form),
        "block_size": nbits.block_size(form, place.columns),
        "accuracy_level": place.plan.accuracy_level or 0,
    }
