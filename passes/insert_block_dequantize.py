"""Weights of few bits in standard operators: codes behind a DequantizeLinear with groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import Names, add_initializer, drop_unread, lazy_tensor
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.numerics.groups import SolvedWeight
from qcompile.passes.insert_qdq import NO_PLAN
from qcompile.passes.weight_places import Load, Permuted, Place, places, unsolved
from qcompile.plan import Plan, WeightPlan


@dataclass(frozen=True, kw_only=True)
class InsertBlockDequantize(GraphPass):
    """Put codes and a DequantizeLinear in the place of planned weights.

    Before: ``y = MatMul(x, W)`` or ``y = Gemm(x, W, b)`` or ``y = Conv(x, W, b)``.
    After:  ``y = MatMul(x, DequantizeLinear<axis=0, block_size=32>(W.codes, W.scale))``.

    Weights of MatMul and Gemm are stored ``(K, N)`` with groups along K, also for a Gemm that read
    them transposed: ONNX Runtime fuses that layout alone. A scale for each channel, also of Conv,
    lies along the channels' axis without groups. Symmetric codes are signed and have no zero point,
    others are unsigned and have one. Codes of 8 bits are stored in 8 bits, all others in 4: int2 is
    of opset 25, and ONNX Runtime 1.31 fuses it to wrong products (its test shows where).

    Columns in another order read ``Gather(x, order)``, made once for each x and order. Codes and
    scales are computed while the file is written. A shared weight is stored once.
    Visits: the main graph. Leaves: nodes in subgraphs, weights in two layouts, types without
    kernels; planned weights of another form.
    """

    name: ClassVar[str] = "insert-block-dequantize"
    needs: ClassVar[frozenset[Fact]] = frozenset(
        {Fact.WORKING_OPSET, Fact.NAMED, Fact.TYPED, Fact.INPUTS_SCALED}
    )
    effect: ClassVar[Effect] = Effect.LOSSY

    plan: Plan = field(default=NO_PLAN, repr=False, compare=False)
    solved: Load = field(default=unsolved, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Find every planned node of this form, then give it its dequantized weight."""
        found = places(model, self.plan, self.refuse, "dequantize")
        writer = _Writer(model, self.solved)
        for place in found:
            writer.replace(place)
        return bool(found)


class _Writer:
    def __init__(self, model: ir.Model, solved: Load) -> None:
        self.graph = model.graph
        self.names = Names(model)
        self.solved = solved
        self.permuted = Permuted(model.graph, self.names)
        self.weights: dict[ir.Value, ir.Value] = {}

    def replace(self, place: Place) -> None:
        """Let a node read the dequantized weight; a Gemm then multiplies as a MatMul does."""
        node, weight = place.node, place.weight
        node.replace_input_with(0, self.permuted.value(place, self.solved))
        if weight not in self.weights:
            self.weights[weight] = self._dequantized(place)
        node.replace_input_with(1, self.weights[weight])
        node.attributes.pop("transB", None)
        drop_unread(weight)

    def _dequantized(self, place: Place) -> ir.Value:
        weight, plan = place.weight, place.plan
        attributes = {"axis": int(not _is_conv(place))}
        if plan.group_size:
            attributes = {"axis": 0, "block_size": plan.group_size}
        node = ir.node(
            "DequantizeLinear",
            [add_initializer(self.graph, tensor) for tensor in self._tensors(place)],
            attributes=attributes,
            name=self.names.fresh(weight, "DequantizeLinear"),
        )
        real = node.outputs[0]
        real.name = self.names.fresh(weight, "dequantized")
        real.type, real.shape = ir.TensorType(place.dtype), ir.Shape(_shape(place))
        self.graph.insert_before(place.node, node)
        return real

    def _tensors(self, place: Place) -> list[ir.LazyTensor]:
        """Return codes, scales and, where they differ, zero points."""
        groups = place.plan.format().groups(place.columns)
        grid = [groups, place.rows] if place.plan.group_size else [place.rows]
        kind = _code_type(place.plan)
        codes = self._tensor(place, "codes", kind, _shape(place), _codes)
        scales = self._tensor(place, "scale", place.dtype, grid, lambda weight: weight.scales)
        if place.plan.symmetric:
            return [codes, scales]
        zeros = self._tensor(place, "zero_point", kind, grid, lambda weight: weight.zeros)
        return [codes, scales, zeros]

    def _tensor(
        self,
        place: Place,
        what: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        part: Callable[[SolvedWeight], np.ndarray],
    ) -> ir.LazyTensor:
        """Return a part of the solved weight, given by rows, in the layout of the node."""
        solved = self.solved

        def compute() -> np.ndarray:
            rows = part(place.load_scaled(solved))
            return rows if _is_conv(place) else rows.T

        return lazy_tensor(self.names.fresh(place.weight, what), dtype, shape, compute)


def _codes(weight: SolvedWeight) -> np.ndarray:
    """Return codes ``(R, K)``, those of a symmetric format around 0."""
    if not weight.format.symmetric:
        return weight.codes
    return (weight.codes.astype(np.int16) - weight.format.middle).astype(np.int8)


def _code_type(plan: WeightPlan) -> ir.DataType:
    if plan.bits == 8:
        return ir.DataType.INT8 if plan.symmetric else ir.DataType.UINT8
    return ir.DataType.INT4 if plan.symmetric else ir.DataType.UINT4


def _shape(place: Place) -> list[int]:
    return place.shape if _is_conv(place) else [place.columns, place.rows]


def _is_conv(place: Place) -> bool:
    return place.node.op_type == "Conv"
