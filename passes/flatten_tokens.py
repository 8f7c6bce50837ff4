"""Pass: flatten tokens."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qcompile.graph.edit import Names, add_constant, add_initializer, bypass, lazy_tensor
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.rows import Region, is_row_constant, row_regions
from qcompile.graph.walk import constant, is_op, only_consumer, producer

Sizes = list[int | None]
"""The sizes of a tensor; None for those that only a run tells."""


@dataclass(frozen=True, kw_only=True)
class FlattenTokens(GraphPass):
    """Keep the values around linear layers as matrices: a row for each token.

    Integer kernels take a bias in a Gemm, which reads matrices only; and on (batch, sequence,
    features) ONNX Runtime joins Add and LayerNormalization to SkipLayerNormalization, which is
    scalar code on a CPU. So a region of nodes that treat all rows alike is computed on matrices
    if it holds a linear layer with a bias. Each value enters and leaves by at most one Reshape,
    and a Reshape that stands at the border goes the whole way alone. Sizes that are not known are
    read once, from a value before the region.

    Before: ``y = LayerNormalization(Add(x, Add(MatMul(x, W), b)))``, x of shape (B, S, K).
    After:  the same on ``x.rows = Reshape(x, [-1, K])``; then ``y = Reshape(y.rows, [B, S, K])``.
    Visits: the main graph. Leaves: MatMul without a bias, which has a kernel for any rank.
    """

    name: ClassVar[str] = "flatten-tokens"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED, Fact.WORKING_OPSET})
    effect: ClassVar[Effect] = Effect.EXACT

    def rewrite(self, model: ir.Model) -> bool:
        """Find the regions, then flatten each."""
        regions = row_regions(model.graph)
        found = [region for region in regions if _pays(region)]
        for region in regions:
            if region not in found and any(is_op(node, "MatMul") for node in region):
                self.refuse("no linear layer of its region has a bias")
        names = Names(model)
        for region in found:
            _Flattening(model.graph, names, region).run()
        if found:
            RemoveUnusedNodesPass()(model)
        return bool(found)


def _pays(region: Region) -> bool:
    """Say whether a linear layer in the region has a bias, or one before it is flat already."""
    for node, indices in region.items():
        result = node.outputs[0]
        reader = only_consumer(result) if is_op(node, "MatMul") else None
        if is_op(reader, "Add") and any(is_row_constant(v, result) for v in reader.inputs):
            return True
        for index in indices:
            reshape = producer(node.inputs[index], "Reshape")
            if reshape is not None and producer(reshape.inputs[0], "Gemm"):
                return True
    return False


class _Flattening:
    """One region on its way from tensors to matrices."""

    def __init__(self, graph: ir.Graph, names: Names, region: Region) -> None:
        self.graph, self.names, self.region = graph, names, region
        self.first = next(iter(region))
        anchor = self.first.inputs[region[self.first][0]]
        assert anchor is not None  # noqa: S101 - rows come from somewhere
        self.anchor = anchor
        self.matrices: dict[ir.Value, ir.Value] = {}
        self.shapes: dict[tuple[int | None, ...], ir.Value] = {}
        self.leads: dict[int, ir.Value] = {}
        self.constants: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        """Rewrite the nodes in graph order."""
        for node, indices in self.region.items():
            for index, value in enumerate(node.inputs):
                if value is not None and index in indices:
                    node.replace_input_with(index, self._matrix(value, node))
                elif value is not None and value.shape is not None and len(value.shape) > 2:
                    node.replace_input_with(index, self._row(value))
            if "axis" in node.attributes:
                node.attributes.add(ir.AttrInt64("axis", -1))
            self._leave(node)

    def _matrix(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        """Return the matrix that holds a value, made before its first reader if need be."""
        if value not in self.matrices:
            source, sizes = value, _sizes(value)
            while (reshape := producer(source, "Reshape")) and reshape.inputs[0] is not None:
                source = reshape.inputs[0]
            if len(_sizes(source)) == 2 and _sizes(source)[1] == sizes[-1]:
                self.matrices[value] = source
            else:
                name = self.names.fresh(value, "rows")
                target = self._target([-1, sizes[-1] or 0], value, sizes)
                node = self._reshape(source, target, name, self.names.fresh(value, "rows.Reshape"))
                node.outputs[0].type, node.outputs[0].shape = value.type, _matrix_shape(value)
                self.graph.insert_before(reader, node)
                self.matrices[value] = node.outputs[0]
        return self.matrices[value]

    def _row(self, value: ir.Value) -> ir.Value:
        """Return a constant (1, ..., 1, K) as (K)."""
        tensor = value.const_value
        if tensor is not None and value not in self.constants:
            name, size = self.names.fresh(value, "row"), tensor.shape.numpy()[-1]
            row = lazy_tensor(name, tensor.dtype, [size], tensor.numpy)
            self.constants[value] = add_initializer(self.graph, row)
        return self.constants[value]

    def _leave(self, node: ir.Node) -> None:
        """Make a node's output a matrix; restore the tensor for readers outside the region."""
        matrix = node.outputs[0]
        tensor = ir.Value(name=matrix.name, type=matrix.type, shape=matrix.shape)
        exported = matrix.is_graph_output()
        outside = [use for use in matrix.uses() if use.idx not in self.region.get(use.node, ())]
        matrix.name = self.names.fresh(tensor, "rows")
        matrix.shape = _matrix_shape(tensor)
        self.matrices[matrix] = matrix
        readers = [use for use in outside if not self._reads_matrix(use.node, matrix, tensor)]
        if not readers and not exported:
            return
        sizes = _sizes(tensor)
        target = self._target([*[0] * (len(sizes) - 1), sizes[-1] or 0], tensor, sizes)
        node_name = self.names.fresh(tensor, "Reshape")
        restore = self._reshape(matrix, target, tensor.name or "", node_name)
        restored = restore.outputs[0]
        restored.type, restored.shape = tensor.type, tensor.shape
        self.graph.insert_after(node, restore)
        for use in readers:
            use.node.replace_input_with(use.idx, restored)
        for index, output in enumerate(self.graph.outputs):
            if output is matrix:
                self.graph.outputs[index] = restored

    def _reads_matrix(self, reader: ir.Node, matrix: ir.Value, tensor: ir.Value) -> bool:
        """Let a Reshape outside read the matrix, where its target does not need the tensor."""
        wanted = constant(reader.inputs[1], max_elements=16) if is_op(reader, "Reshape") else None
        if wanted is None or reader.attributes.get_int("allowzero", 0) == 1:
            return False
        result, sizes = reader.outputs[0], _sizes(tensor)
        if wanted.tolist() == [-1, sizes[-1]] and not result.is_graph_output():
            bypass(result, matrix)
            return True
        target = self._target(wanted.tolist(), result, sizes)
        if target is not None:
            reader.replace_input_with(1, target)
        return target is not None

    def _reshape(
        self, source: ir.Value, target: ir.Value | None, name: str, node_name: str
    ) -> ir.Node:
        node = ir.node("Reshape", [source, target], name=node_name)
        node.outputs[0].name = name
        return node

    def _target(self, wanted: list[int], owner: ir.Value, tensor: Sizes) -> ir.Value | None:
        """Return a target shape that reads no sizes off its input, or None if there is none.

        Args:
            wanted: The target for the tensor: 0 is "as in the tensor", -1 "what is left".
            owner: The value that gets this shape, to name it after.
            tensor: Sizes of the tensor.
        """
        sizes = [tensor[i] if size == 0 else size for i, size in enumerate(wanted)]
        if -1 in sizes and tensor.count(None) == sizes.count(None):
            said = math.prod(size for size in sizes if size not in (None, -1))
            sizes[sizes.index(-1)] = math.prod(size for size in tensor if size) // said
        if sizes.count(None) == 1 and -1 not in sizes:
            sizes[sizes.index(None)] = -1
        taken = max((i + 1 for i, size in enumerate(sizes) if size is None), default=0)
        if any(size != 0 for size in wanted[:taken]):
            return None
        key = (*[None] * taken, *sizes[taken:])
        if key not in self.shapes:
            self.shapes[key] = self._shape(taken, sizes[taken:], owner)
        return self.shapes[key]

    def _shape(self, taken: int, said: Sizes, owner: ir.Value) -> ir.Value:
        """Make a shape: the first sizes as the region's values have them, then constants."""
        numbers = np.array(said, np.int64)
        if not taken:
            return add_constant(self.graph, self.names.fresh(owner, "shape"), numbers)
        if taken not in self.leads:
            attributes = {"start": 0, "end": taken}
            node = ir.node("Shape", [self.anchor], attributes)
            self.leads[taken] = self._vector(node, self.anchor, "sizes", taken)
        rest = add_constant(self.graph, self.names.fresh(owner, "rest"), numbers)
        node = ir.node("Concat", [self.leads[taken], rest], {"axis": 0})
        return self._vector(node, owner, "shape", taken + len(said))

    def _vector(self, node: ir.Node, owner: ir.Value, what: str, length: int) -> ir.Value:
        """Put a node that makes an integer vector before the region."""
        node.name = self.names.fresh(owner, f"{what}.{node.op_type}")
        value = node.outputs[0]
        value.name = self.names.fresh(owner, what)
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([length])
        self.graph.insert_before(self.first, node)
        return value


def _sizes(value: ir.Value) -> Sizes:
    return [d if isinstance(d, int) else None for d in value.shape or ()]


def _matrix_shape(tensor: ir.Value) -> ir.Shape:
    *lead, width = _sizes(tensor)
    known = [d for d in lead if d is not None]
    return ir.Shape([math.prod(known) if len(known) == len(lead) else None, width])
