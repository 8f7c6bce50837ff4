"""Pass: expand qlinear."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import (
    Names,
    add_constant,
    add_initializer,
    lazy_tensor,
    remove_unread,
    take_over,
)
from qcompile.graph.protocol import Effect, Fact, GraphPass
from qcompile.graph.walk import all_nodes, constant, is_constant, is_op, only_consumer
from qcompile.numerics.nbits import PackedWeight
from qcompile.passes.dequantize_graph import CONTRIB, is_dequantize, is_quantize

_UNARY = ("QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearLeakyRelu", "QLinearSigmoid")
_INTEGER = ("MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeLinear")
Inputs = Sequence[ir.Value | None]


class _UnknownError(Exception):
    """A form of an operator that is left alone, with the reason."""


@dataclass(frozen=True, kw_only=True)
class ExpandQlinear(GraphPass):
    """Write operators that compute on codes as the operators on reals between DQ and Q.

    Before: ``y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b)``.
    After:  ``y = Q(Conv(DQ(x), DQ(w), DQ(b)))``, b on the grid xs times ws.

    So do QLinearMatMul and ONNX Runtime's QLinearAdd, -Mul, -Concat, -Sigmoid, -LeakyRelu,
    -AveragePool, -GlobalAveragePool, -Softmax, QGemm and MatMulIntegerToFloat. What dynamic
    quantization writes (DynamicQuantizeMatMul; or DynamicQuantizeLinear, MatMulInteger or
    ConvInteger, Cast and Mul) becomes a product of floats with a dequantized weight; MatMulNBits a
    product with what its codes stand for, computed when it is read.
    Visits: the main graph and subgraphs. Leaves: other operators on codes; scales that are
    computed; channels last.
    """

    name: ClassVar[str] = "expand-qlinear"
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.INLINED, Fact.NAMED, Fact.TYPED})
    effect: ClassVar[Effect] = Effect.LOSSY

    def rewrite(self, model: ir.Model) -> bool:
        """Replace node by node; what is there for integers only goes with them."""
        found = [node for node, _ in all_nodes(model) if _is_integer(node)]
        names, changed = Names(model), False
        for node in found:
            if node.graph is None:
                continue
            expand = _EXPANSIONS.get(node.op_type)
            try:
                if expand is None:
                    continue
                expand(_Writer(node, names))
            except _UnknownError as reason:
                self.refuse(f"{node.op_type}: {reason}")
                continue
            changed = True
        for node in found:
            if node.graph is not None and _is_integer(node):
                read = any(v.uses() or v.is_graph_output() for v in node.outputs)
                if not read:
                    remove_unread(node)
                elif node.op_type not in _EXPANSIONS and node.op_type != "DynamicQuantizeLinear":
                    self.refuse(f"{node.op_type} is not known in floats: it stays as it is")
        return changed


def holds_codes(model: ir.Model) -> bool:
    """Say whether a model is quantized: it rounds, or stores or computes with codes."""
    functions = (node for function in model.functions.values() for node in function)
    nodes = (*(node for node, _ in all_nodes(model)), *functions)
    return any(is_dequantize(node) or is_quantize(node) or _is_integer(node) for node in nodes)


def _is_integer(node: ir.Node) -> bool:
    if node.domain not in ("", CONTRIB):
        return False
    return (
        node.op_type in _EXPANSIONS
        or node.op_type in _INTEGER
        or node.op_type.startswith(("QLinear", "QAttention", "QOrdered", "QEmbed"))
    )


class _Writer:
    """Adds nodes in the place of one."""

    def __init__(self, node: ir.Node, names: Names) -> None:
        assert node.graph is not None  # noqa: S101 - it was found there
        self.node, self.graph, self.names = node, node.graph, names
        self.place = node

    def input(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def add(self, op: str, inputs: Inputs, **attributes: int) -> ir.Value:
        result = self.node.outputs[0]
        made = ir.node(op, inputs, attributes=attributes, name=self.names.fresh(result, op))
        self._put(made, result)
        return made.outputs[0]

    def same(self, op: str, inputs: Inputs, *without: str) -> ir.Value:
        """Add an operator with the attributes of the node."""
        result = self.node.outputs[0]
        kept = {k: v for k, v in self.node.attributes.items() if k not in without}
        made = ir.node(op, inputs, attributes=kept, name=self.names.fresh(result, op))
        self._put(made, result)
        return made.outputs[0]

    def _put(self, made: ir.Node, result: ir.Value) -> None:
        made.outputs[0].name = self.names.fresh(result, made.op_type.lower())
        made.outputs[0].shape = result.shape
        kind = ir.DataType.FLOAT
        if made.op_type == "QuantizeLinear":
            zero = made.inputs[2] if len(made.inputs) > 2 else None
            kind = zero.dtype if zero is not None and zero.dtype else ir.DataType.UINT8
        made.outputs[0].type = ir.TensorType(kind)
        self.graph.insert_before(self.place, made)

    def real(self, index: int, axis: int = 0) -> ir.Value:
        """Return codes, scale and zero point of consecutive inputs as reals."""
        return self.dequantized(
            self.input(index), self.input(index + 1), self.input(index + 2), axis
        )

    def dequantized(
        self, codes: ir.Value | None, scale: ir.Value | None, zero: ir.Value | None, axis: int = 0
    ) -> ir.Value:
        if codes is None or scale is None:
            raise _UnknownError("an input is left out")
        single = scale.shape is not None and all(size == 1 for size in scale.shape)
        place = {} if single else {"axis": axis}
        real = self.add("DequantizeLinear", [codes, scale, *([zero] if zero else [])], **place)
        real.shape = codes.shape
        return real

    def finish(self, real: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> None:
        """Round the result to codes, under the name of the old ones; reals where no scale is."""
        if scale is not None:
            real = self.add("QuantizeLinear", [real, scale, *([zero] if zero else [])])
        self.replace(self.node.outputs[0], real)

    def replace(self, old: ir.Value, real: ir.Value) -> None:
        take_over(real, old)
        maker = old.producer()
        assert maker is not None  # noqa: S101 - it is the node's, or behind it
        remove_unread(maker)

    def bias(self, codes: ir.Value | None, scale: int, weight_scale: int) -> list[ir.Value]:
        """Return int32 codes as reals: their scale is that of the input times the weight's."""
        if codes is None:
            return []
        scales = [constant(self.input(i)) for i in (scale, weight_scale)]
        if scales[0] is None or scales[1] is None:
            raise _UnknownError("its scales are computed")
        product = (scales[0].reshape(-1) * scales[1].reshape(-1)).astype(np.float32)
        step = product.reshape(()) if product.size == 1 else product
        named = add_constant(self.graph, self.names.fresh(codes, "scale"), step)
        return [self.dequantized(codes, named, None)]


def _conv(w: _Writer) -> None:
    bias = w.bias(w.input(8), 1, 4)
    w.finish(w.same("Conv", [w.real(0), w.real(3), *bias]), w.input(6), w.input(7))


def _matmul(w: _Writer) -> None:
    w.finish(
        w.add("MatMul", [w.real(0), w.real(3, axis=_last(w.input(3)))]), w.input(6), w.input(7)
    )


def _gemm(w: _Writer) -> None:
    transposed = w.node.attributes.get_int("transB", 0)
    if w.node.attributes.get_float("alpha", 1.0) != 1.0:
        raise _UnknownError("it has a factor")
    bias = w.bias(w.input(6), 1, 4)
    inputs = [w.real(0), w.real(3, axis=0 if transposed else 1), *bias]
    w.finish(w.same("Gemm", inputs, "alpha"), w.input(7), w.input(8))


def _binary(w: _Writer) -> None:
    op = w.node.op_type.removeprefix("QLinear")
    w.finish(w.add(op, [w.real(0), w.real(3)]), w.input(6), w.input(7))


def _unary(w: _Writer) -> None:
    if w.node.attributes.get_int("channels_last", 0):
        raise _UnknownError("its channels are the last axis")
    op = w.node.op_type.removeprefix("QLinear")
    w.finish(w.same(op, [w.real(0)], "channels_last"), w.input(3), w.input(4))


def _softmax(w: _Writer) -> None:
    if w.node.attributes.get_int("opset", 0) < 13:
        raise _UnknownError("it is that of an opset before 13")
    w.finish(w.same("Softmax", [w.real(0)], "opset"), w.input(3), w.input(4))


def _concat(w: _Writer) -> None:
    parts = [w.real(index) for index in range(2, len(w.node.inputs), 3)]
    w.finish(w.same("Concat", parts), w.input(0), w.input(1))


def _to_float(w: _Writer) -> None:
    data = w.dequantized(w.input(0), w.input(2), w.input(4))
    weight = w.dequantized(w.input(1), w.input(3), w.input(5), _last(w.input(1)))
    w.finish(_plus(w, w.add("MatMul", [data, weight]), w.input(6)), None, None)


def _dynamic(w: _Writer) -> None:
    weight = w.dequantized(w.input(1), w.input(2), w.input(3), _last(w.input(1)))
    w.finish(_plus(w, w.add("MatMul", [w.input(0), weight]), w.input(4)), None, None)


def _integer(w: _Writer) -> None:
    """A product of integers, cast to float, times the product of both scales."""
    cast = only_consumer(w.node.outputs[0])
    scaled = only_consumer(cast.outputs[0]) if is_op(cast, "Cast") else None
    codes = w.input(0)
    source = codes.producer() if codes is not None else None
    if not is_op(scaled, "Mul") or not is_op(source, "DynamicQuantizeLinear"):
        raise _UnknownError("it is not what dynamic quantization writes: Cast and Mul behind it")
    factor = next(v for v in scaled.inputs if v is not None and v.producer() is not cast)
    weight_scale = _other(factor, source.outputs[1])
    if weight_scale is None or not is_constant(w.input(1)):
        raise _UnknownError("its scales are not those of its input and of a constant weight")
    conv = w.node.op_type == "ConvInteger"
    axis = 0 if conv else _last(w.input(1))
    flat = _flat(w, weight_scale)
    weight = w.dequantized(w.input(1), flat, _flat(w, w.input(3)) if w.input(3) else None, axis)
    data = source.inputs[0]
    product = w.same("Conv", [data, weight]) if conv else w.add("MatMul", [data, weight])
    w.replace(scaled.outputs[0], product)


def _other(factor: ir.Value, scale: ir.Value) -> ir.Value | None:
    """Return the constant scale that is multiplied with the one of the input."""
    product = factor.producer()
    if not is_op(product, "Mul") or scale not in product.inputs:
        return None
    return next((v for v in product.inputs if is_constant(v)), None)


def _flat(w: _Writer, value: ir.Value | None) -> ir.Value | None:
    """Return a constant as one number or a row of them, whatever its shape."""
    array = constant(value)
    if value is None or array is None or array.ndim < 2:
        return value
    return add_constant(w.graph, w.names.fresh(value, "row"), array.reshape(-1))


def _few_bits(w: _Writer) -> None:
    get = w.node.attributes.get_int
    columns, rows, bits, size = get("K"), get("N"), get("bits", 4), get("block_size")
    codes, scales, zeros = (w.input(i) for i in (1, 2, 3))
    known = is_constant(codes) and is_constant(scales) and (zeros is None or is_constant(zeros))
    if not known or w.input(4) is not None:
        raise _UnknownError("its weight is computed, or its columns stand in another order")
    if bits not in (2, 4, 8) or (zeros is not None and zeros.dtype != ir.DataType.UINT8):
        raise _UnknownError("it has another form of codes")
    tensors = [v.const_value if v is not None else None for v in (codes, scales, zeros)]
    blocks = -(-columns // size)

    def compute() -> np.ndarray:
        bytes_, steps, shifts = (None if t is None else t.numpy() for t in tensors)
        assert bytes_ is not None  # noqa: S101 - required inputs
        assert steps is not None  # noqa: S101
        packed = PackedWeight(
            bits,
            size,
            columns,
            bytes_.reshape(rows, blocks, -1),
            steps.reshape(rows, blocks),
            None if shifts is None else shifts.reshape(rows, -1),
        )
        return packed.values().T

    assert codes is not None  # noqa: S101 - known
    kind = scales.dtype if scales is not None and scales.dtype else ir.DataType.FLOAT
    label = w.names.fresh(codes, "dequantized")
    weight = add_initializer(w.graph, lazy_tensor(label, kind, [columns, rows], compute))
    w.finish(_plus(w, w.add("MatMul", [w.input(0), weight]), w.input(5)), None, None)


def _plus(w: _Writer, product: ir.Value, bias: ir.Value | None) -> ir.Value:
    return product if bias is None else w.add("Add", [product, bias])


def _last(value: ir.Value | None) -> int:
    shape = value.shape if value is not None else None
    return max(len(shape) - 1, 0) if shape is not None else 1


_EXPANSIONS: dict[str, Callable[[_Writer], None]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearAdd": _binary,
    "QLinearMul": _binary,
    "QLinearConcat": _concat,
    "QLinearSoftmax": _softmax,
    **dict.fromkeys(_UNARY, _unary),
    "MatMulIntegerToFloat": _to_float,
    "DynamicQuantizeMatMul": _dynamic,
    "MatMulInteger": _integer,
    "ConvInteger": _integer,
    "MatMulNBits": _few_bits,
}
