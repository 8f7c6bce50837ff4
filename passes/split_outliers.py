"""Linear layers split in two: the loud columns of their input apart from the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.errors import PlanError
from qcompile.graph.edit import (
    Names,
    add_constant,
    add_initializer,
    drop_unread,
    lazy_tensor,
)
from qcompile.graph.insertion import new_node, put_behind
from qcompile.graph.outlier_parts import outlier_parts
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import is_constant, is_op
from qcompile.remedies import Outliers, Remedies

_Size = int | ir.SymbolicDim | None
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True, kw_only=True)
class SplitOutliers(GraphPass):
    """Let a float product compute the outlier columns of a layer's input, and codes the rest.

    That is the decomposition of LLM.int8() (arXiv:2208.07339, equation 8): the few columns whose
    range is many times that of the others no longer widen the grid that all share.

    Before: ``y = MatMul(x, W)``, or ``Gemm(x, W, b)``.
    After:  ``y = Add(y.regular, y.outliers)`` with ``y.regular = MatMul(x.regular, W.regular)``:
            ``x.regular = Mul(x, mask)`` has zeros in the outlier columns, ``W.regular`` in their
            rows; and ``y.outliers = MatMul(Gather(x, channels), W.outliers)``.

    So x.regular and W.regular have the range of what the codes are for. One Mul is cheap, where to
    gather all other columns would not be. Layers that read the same columns of one value share Mul
    and Gather. The layer keeps its name and its bias; of Gemm, transB is resolved.

    Where the columns are found at run time, they are those that reach the threshold in any row of
    this input. The rows are gathered from W, which keeps them all; there may be none.

    Visits: the main graph. Leaves: layers whose weight is no constant matrix or whose input is no
    matrix or more, and Gemm with alpha or transA. What is split already is passed over.
    """

    name: ClassVar[str] = "split-outliers"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.REASSOCIATES

    remedies: Remedies = field(default_factory=Remedies, repr=False, compare=False)

    def rewrite(self, model: ir.Model) -> bool:
        """Find the layers, then split each."""
        wanted = self.remedies.outliers
        nodes = {node.name: node for node in model.graph}
        for name in wanted:
            if name not in nodes:
                raise PlanError(f"plan: remedies.outliers: node {name} is not in the model")
        found = [node for node in model.graph if node.name in wanted and self._fits(node)]
        splitting = _Splitting(model)
        for node in found:
            splitting.split(node, wanted[str(node.name)])
        return bool(found)

    def _fits(self, node: ir.Node) -> bool:
        """Say whether a node is to be split; refuse one that cannot be.

        Raises:
            PlanError: The columns named are not the layer's.
        """
        if outlier_parts(node):
            return False
        reason = _obstacle(node)
        if reason:
            self.refuse(reason)
            return False
        outliers, columns = self.remedies.outliers[str(node.name)], _matrix_shape(node)[0]
        if outliers.columns != columns or max(outliers.channels, default=0) >= columns:
            raise PlanError(
                f"plan: remedies.outliers: {node.name} reads {columns} columns: not those named"
            )
        return bool(outliers.channels) or outliers.run_time


def _obstacle(node: ir.Node) -> str:
    """Return why a node cannot be split, or nothing."""
    if not is_op(node, "MatMul", "Gemm"):
        return f"{node.op_type} is no product with a matrix of weights"
    x, weight = node.inputs[:2]
    matrix = None if weight is None else weight.const_value
    if x is None or is_constant(x) or not is_constant(weight) or matrix is None:
        return "its weight is not constant, or its input is"
    if len(matrix.shape) != 2 or matrix.dtype not in _FLOATS:
        return "its weight is no matrix of floats"
    if x.shape is None or len(x.shape) < 2:
        return "its input is no matrix"
    if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1.0:
        return "a Gemm with alpha or transA"
    return ""


def _weight(node: ir.Node) -> tuple[ir.Value, ir.TensorProtocol]:
    weight = node.inputs[1]
    assert weight is not None  # noqa: S101 - _obstacle looked
    assert weight.const_value is not None  # noqa: S101
    return weight, weight.const_value


def _transposed(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("transB", 0))


def _matrix_shape(node: ir.Node) -> list[int]:
    """Return ``[K, N]`` of a layer's weight."""
    shape = list(_weight(node)[1].shape.numpy())
    return shape[::-1] if _transposed(node) else shape


@dataclass(frozen=True)
class _Parts:
    """What the layers share that read the same columns of one value.

    Attributes:
        regular: The value with zeros in these columns.
        loud: These columns alone.
        channels: Their numbers.
    """

    regular: ir.Value
    loud: ir.Value
    channels: ir.Value


class _Splitting:
    """Splits the layers of one model."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names = Names(model)
        self.parts: dict[tuple[ir.Value, object], _Parts] = {}
        self.matrices: dict[tuple[object, ...], ir.Value] = {}

    def split(self, node: ir.Node, outliers: Outliers) -> None:
        """Let a layer compute its regular part, and add the product of its outliers."""
        y, weight = node.outputs[0], _weight(node)[0]
        parts, channels = self._parts(node, outliers), outliers.channels
        if outliers.run_time:
            matrix = self._matrix(node, "transposed", []) if _transposed(node) else weight
            read = [matrix, parts.channels]
            sizes = [None, _matrix_shape(node)[1]]
            rows = self._before(node, "Gather", read, y, "rows", sizes, axis=0)
        else:
            matrix = self._matrix(node, "regular", channels)
            rows = self._matrix(node, "outliers", channels)
        node.replace_input_with(0, parts.regular)
        node.replace_input_with(1, matrix)
        node.attributes.pop("transB", None)
        drop_unread(weight)
        product = [parts.loud, rows]
        extra = new_node(self.names, "MatMul", product, y, "outliers", y.shape)
        read = [y, extra.outputs[0]]
        total = new_node(self.names, "Add", read, y, "total", y.shape)
        put_behind(self.names, node, [extra, total], "regular")

    def _parts(self, node: ir.Node, outliers: Outliers) -> _Parts:
        x = node.inputs[0]
        assert x is not None  # noqa: S101 - _obstacle looked
        key = x, outliers.threshold if outliers.run_time else tuple(outliers.channels)
        if key not in self.parts:
            find = self._searched if outliers.run_time else self._known
            mask, channels = find(node, x, outliers)
            sizes = list(x.shape or ())
            count = None if outliers.run_time else len(outliers.channels)
            regular = self._before(node, "Mul", [x, mask], x, "regular", sizes)
            few = [*sizes[:-1], count]
            loud = self._before(node, "Gather", [x, channels], x, "loud", few, axis=-1)
            self.parts[key] = _Parts(regular, loud, channels)
        return self.parts[key]

    def _known(self, node: ir.Node, x: ir.Value, outliers: Outliers) -> tuple[ir.Value, ir.Value]:
        """Return 0 at outliers and 1 elsewhere, ``(K,)``, and the numbers of the outliers."""
        mask = np.ones(outliers.columns, _weight(node)[1].dtype.numpy())
        mask[outliers.channels] = 0
        channels = self._constant(x, "channels", np.asarray(outliers.channels, np.int64))
        return self._constant(x, "mask", mask), channels

    def _searched(
        self, node: ir.Node, x: ir.Value, outliers: Outliers
    ) -> tuple[ir.Value, ir.Value]:
        """Return the same, computed in each run."""
        dtype, sizes = _weight(node)[1].dtype, list(x.shape or ())
        limit = self._constant(x, "threshold", np.asarray(outliers.threshold, dtype.numpy()))
        rows = self._constant(x, "rows", np.arange(len(sizes) - 1))
        first = self._constant(x, "first", np.zeros(1, np.int64))

        def add(
            op: str,
            inputs: list[ir.Value],
            what: str,
            shape: Sequence[_Size],
            dtype: ir.DataType = dtype,
            **attributes: int,
        ) -> ir.Value:
            value = self._before(node, op, inputs, x, what, shape, **attributes)
            value.type = ir.TensorType(dtype)
            return value

        size = add("Abs", [x], "magnitude", sizes)
        most = add("ReduceMax", [size, rows], "maxima", sizes[-1:], keepdims=0)
        loud = add("GreaterOrEqual", [most, limit], "is_loud", sizes[-1:], ir.DataType.BOOL)
        places = add("NonZero", [loud], "places", [1, None], ir.DataType.INT64)
        channels = add("Squeeze", [places, first], "channels", [None], ir.DataType.INT64)
        quiet = add("Not", [loud], "is_regular", sizes[-1:], ir.DataType.BOOL)
        return add("Cast", [quiet], "mask", sizes[-1:], to=int(dtype)), channels

    def _matrix(self, node: ir.Node, what: str, channels: list[int]) -> ir.Value:
        """Return a layer's weight as ``(K, N)``: these rows alone (outliers), or zeros in them."""
        weight, source = _weight(node)
        transposed, shape = _transposed(node), _matrix_shape(node)
        key = weight, transposed, what, *channels
        if key not in self.matrices:
            if what == "outliers":
                shape[0] = len(channels)

            def compute() -> np.ndarray:
                matrix = source.numpy().T if transposed else source.numpy()
                if what == "outliers":
                    return matrix[channels]
                matrix = matrix.copy()
                matrix[channels] = 0
                return matrix

            name = self.names.fresh(weight, what)
            tensor = lazy_tensor(name, source.dtype, shape, compute)
            self.matrices[key] = add_initializer(self.graph, tensor)
        return self.matrices[key]

    def _constant(self, owner: ir.Value, what: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.graph, self.names.fresh(owner, what), array)

    def _before(
        self,
        reader: ir.Node,
        op: str,
        inputs: Sequence[ir.Value],
        owner: ir.Value,
        what: str,
        shape: Sequence[_Size],
        **attributes: int,
    ) -> ir.Value:
        """Put a new node before another; return what it makes."""
        node = new_node(self.names, op, inputs, owner, what, shape, **attributes)
        self.graph.insert_before(reader, node)
        return node.outputs[0]
