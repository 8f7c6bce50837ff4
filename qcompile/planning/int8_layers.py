"""Layers whose 8-bit weights are solved for, each seen as rows of weights."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qcompile.graph.walk import is_op
from qcompile.numerics.grids import Codes
from qcompile.plan import TensorPlan

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Int8Layer:
    """A weighted node; its weight is seen as rows ``(groups, R, columns)``.

    Attributes:
        node: A Conv, MatMul or Gemm.
        weight: Name of its weight.
        tensor: The weight's grid.
        groups: Of a convolution, else 1.
        columns: Weights that each output sums over.
    """

    node: ir.Node
    weight: str
    tensor: TensorPlan
    groups: int
    columns: int

    @property
    def x(self) -> str:
        """Name of what the layer reads."""
        value = self.node.inputs[0]
        assert value is not None  # noqa: S101 - such nodes have it
        return value.name or ""

    @property
    def high(self) -> int:
        """The largest code; the lowest is its negative."""
        return 63 if self.tensor.reduce_range else 127

    def values(self) -> npt.NDArray[np.floating]:
        """Return the weight as it lies in the graph."""
        value = self.node.inputs[1]
        assert value is not None and value.const_value is not None  # noqa: S101, PT018 - constant
        return value.const_value.numpy()

    def rows(self) -> Wide:
        """Return the weight as rows, float64 ``(groups, R, columns)``."""
        return self.as_rows(self.values()).astype(np.float64)

    def as_rows(self, shaped: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return codes or values shaped like the weight as rows ``(groups, R, columns)``."""
        first = np.moveaxis(shaped, self.tensor.axis or 0, 0)
        return first.reshape(self.groups, -1, self.columns)

    def scales(self) -> Wide:
        """Return the scale of each row, float64 ``(groups, R)``."""
        return self.tensor.scales().astype(np.float64).reshape(self.groups, -1)

    def shaped(self, rows: npt.NDArray[np.generic]) -> Codes:
        """Return codes or values given as rows in the shape of the weight."""
        axis = self.tensor.axis or 0
        first = np.moveaxis(self.values(), axis, 0).shape
        return np.ascontiguousarray(np.moveaxis(rows.reshape(first), 0, axis))


def int8_layers(
    model: ir.Model, tensors: Mapping[str, TensorPlan], nodes: Collection[str]
) -> Iterator[Int8Layer]:
    """Yield the named nodes' layers in graph order; a shared weight has that of its first reader.

    Args:
        model: The lowered graph.
        tensors: Grids of the weights.
        nodes: Names of nodes that compute in int8.
    """
    seen: set[str] = set()
    for node in model.graph:
        if node.name not in nodes or not is_op(node, "Conv", "MatMul", "Gemm"):
            continue
        value = node.inputs[1]
        name = (value.name or "") if value is not None else ""
        tensor = tensors.get(name)
        if value is None or value.const_value is None or tensor is None or name in seen:
            continue
        seen.add(name)
        shape = value.const_value.shape.numpy()
        if is_op(node, "Conv"):
            groups = node.attributes.get_int("group", 1)
            yield Int8Layer(node, name, tensor, groups, int(np.prod(shape[1:])))
        else:
            yield Int8Layer(node, name, tensor, 1, int(shape[1 - (tensor.axis or 0)]))
