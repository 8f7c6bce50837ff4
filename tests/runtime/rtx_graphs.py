"""Small quantized graphs for TensorRT for RTX, written with onnx.helper."""

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
CODES = {
    "int8": (np.int8, TensorProto.INT8),
    "fp8": (ml_dtypes.float8_e4m3fn, TensorProto.FLOAT8E4M3FN),
    "int4": (ml_dtypes.int4, TensorProto.INT4),
}
NUMPY = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@dataclass
class Graph:
    """Collects nodes and constants; ``dtype`` is the type of scales and of all that is float."""

    dtype: str = "fp32"
    opset: int = 21
    nodes: list = field(default_factory=list)
    constants: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def input(self, name, *shape, dtype=None):
        self.inputs.append(helper.make_tensor_value_info(name, dtype or FLOATS[self.dtype], shape))
        return name

    def constant(self, name, array):
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def floats(self, name, *shape):
        return self.constant(name, self.rng.normal(size=shape).astype(NUMPY[self.dtype]))

    def node(self, op, inputs, output=None, name=None, **attributes):
        name = name or op.lower()
        output = output or f"{name}_out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def scale(self, name, *shape, value=0.05):
        return self.constant(name, np.full(shape, value, NUMPY[self.dtype]))

    def zeros(self, name, kind, *shape):
        numpy_type, onnx_type = CODES[kind]
        return self._codes(name, np.zeros(shape, numpy_type), onnx_type)

    def codes(self, name, kind, *shape):
        numpy_type, onnx_type = CODES[kind]
        spread = {"int8": 40, "int4": 3, "fp8": 1}[kind]
        values = self.rng.normal(size=shape) * spread
        if kind != "fp8":
            values = np.round(np.clip(values, -8, 7) if kind == "int4" else values.clip(-127, 127))
        return self._codes(name, values.astype(numpy_type), onnx_type)

    def _codes(self, name, array, onnx_type):
        if onnx_type == TensorProto.INT8:
            return self.constant(name, array)
        tensor = onnx.TensorProto(name=name, data_type=onnx_type, dims=array.shape)
        raw = array
        if onnx_type == TensorProto.INT4:
            flat = array.astype(np.int8).ravel().view(np.uint8) & 15
            raw = flat[0::2] | flat[1::2] << 4
        tensor.raw_data = raw.tobytes()
        self.constants.append(tensor)
        return name

    def qdq(self, x, kind="int8", shape=(), axis=None):
        """Q and DQ behind an activation; returns what comes out."""
        scale, zero = self.scale(f"{x}_scale", *shape), self.zeros(f"{x}_zero", kind, *shape)
        more = {} if axis is None else {"axis": axis}
        q = self.node("QuantizeLinear", [x, scale, zero], name=f"{x}_Q", **more)
        return self.node("DequantizeLinear", [q, scale, zero], name=f"{x}_DQ", **more)

    def weight(self, name, *shape, axis, kind="int8"):
        """Codes and DQ, a scale for each channel of ``axis``; returns what comes out."""
        channels = (shape[axis],) if axis is not None else ()
        codes = self.codes(name, kind, *shape)
        inputs = [codes, self.scale(f"{name}_scale", *channels, value=0.01)]
        inputs += [] if kind == "int4" else [self.zeros(f"{name}_zero", kind, *channels)]
        more = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", inputs, name=f"{name}_DQ", **more)

    def blocks(self, name, rows, columns, block, kind="int4"):
        """Codes (rows, columns) with a scale for each ``block`` rows; returns what comes out."""
        codes = self.codes(name, kind, rows, columns)
        scale = self.scale(f"{name}_scale", rows // block, columns, value=0.01)
        return self.node(
            "DequantizeLinear", [codes, scale], name=f"{name}_DQ", axis=0, block_size=block
        )

    def save(self, path, output, dtype=None, **options):
        out = helper.make_tensor_value_info(output, dtype or FLOATS[self.dtype], None)
        graph = helper.make_graph(self.nodes, "graph", self.inputs, [out], self.constants)
        domains = {node.domain for node in self.nodes if node.domain}
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.save(model, path, **options)
        return path
