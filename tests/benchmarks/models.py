"""ONNX graphs in the shape of ResNet-50, MobileNetV2 and BERT-base, with random weights.

Written the way torch's exporter writes them: batch norms as nodes, ReLU6 as Clip, 3-D
MatMul + Add, erf-GELU in five nodes, attention as MatMul and Softmax. Weights are He-initialized
(He et al. 2015, arXiv:1502.01852, equation 10) from a seed; there is nothing to download.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.benchmarks.peers import Feeds

OPSET = 17


@dataclass
class Builder:
    """Collects nodes and weights; every method returns the name of the new value."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"/{name}", **attributes))
        return name

    def weight(self, value: object) -> str:
        """Add an initializer, float32 unless it already has a type."""
        array = np.asarray(value)
        name = f"weight_{len(self.weights)}"
        self.weights[name] = array.astype(np.float32) if array.dtype == np.float64 else array
        return name

    def normal(self, *shape: int, fan_in: int, gain: float = 2.0) -> str:
        """Add a weight of normal values with variance ``gain / fan_in``."""
        return self.weight(np.sqrt(gain / fan_in) * self.rng.standard_normal(shape, np.float32))

    def conv_norm(self, x: str, c_in: int, c_out: int, k: int, stride: int, group: int = 1) -> str:
        """Add a Conv without bias and its BatchNormalization."""
        fan_in = c_in // group * k * k
        w = self.normal(c_out, c_in // group, k, k, fan_in=fan_in)
        pads, strides = [k // 2] * 4, [stride] * 2
        y = self.add("Conv", x, w, kernel_shape=[k, k], pads=pads, strides=strides, group=group)
        scale, var = self.rng.uniform(0.8, 1.2, (2, c_out))
        bias, mean = self.rng.normal(0, 0.1, (2, c_out))
        return self.add("BatchNormalization", y, *map(self.weight, (scale, bias, mean, var)))

    def linear(self, x: str, c_in: int, c_out: int) -> str:
        """Add a MatMul and the Add of its bias."""
        y = self.add("MatMul", x, self.normal(c_in, c_out, fan_in=c_in, gain=1.0))
        return self.add("Add", self.weight(self.rng.normal(0, 0.02, c_out)), y)

    def head(self, x: str, channels: int) -> str:
        """Add the global average and the classifier."""
        y = self.add("Flatten", self.add("GlobalAveragePool", x))
        weight = self.normal(1000, channels, fan_in=channels, gain=1.0)
        return self.add("Gemm", y, weight, self.weight(np.zeros(1000)), transB=1)

    def model(self, name: str, port: onnx.ValueInfoProto, output: str) -> onnx.ModelProto:
        """Return the checked model with one input and one output."""
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        tensors = [numpy_helper.from_array(value, key) for key, value in self.weights.items()]
        graph = helper.make_graph(self.nodes, name, [port], [result], tensors)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, ir_version=8, opset_imports=opset)
        model = onnx.shape_inference.infer_shapes(model, check_type=True)
        onnx.checker.check_model(model)
        return model


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """Return ResNet-50 v1.5 (He et al. 2015, arXiv:1512.03385, table 1), 1x3x224x224."""
    b = Builder(np.random.default_rng(seed))
    x = b.add("Relu", b.conv_norm("image", 3, 64, 7, 2))
    x = b.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, repeats in enumerate((3, 4, 6, 3)):
        inner = 64 << stage
        for index in range(repeats):
            stride = 2 if stage and not index else 1
            y = b.add("Relu", b.conv_norm(x, channels, inner, 1, 1))
            y = b.add("Relu", b.conv_norm(y, inner, inner, 3, stride))
            y = b.conv_norm(y, inner, 4 * inner, 1, 1)
            if not index:
                x = b.conv_norm(x, channels, 4 * inner, 1, stride)
            x = b.add("Relu", b.add("Add", y, x))
            channels = 4 * inner
    return b.model("resnet50", _image(), b.head(x, channels))


def mobilenetv2(seed: int = 0) -> onnx.ModelProto:
    """Return MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381, table 2), 1x3x224x224."""
    b = Builder(np.random.default_rng(seed))

    def relu6(x: str) -> str:
        return b.add("Clip", x, b.weight(np.float32(0)), b.weight(np.float32(6)))

    x = relu6(b.conv_norm("image", 3, 32, 3, 2))
    channels = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    for expand, c_out, repeats, first_stride in (*table, (6, 160, 3, 2), (6, 320, 1, 1)):
        for index in range(repeats):
            stride = first_stride if not index else 1
            hidden = expand * channels
            y = x if expand == 1 else relu6(b.conv_norm(x, channels, hidden, 1, 1))
            y = relu6(b.conv_norm(y, hidden, hidden, 3, stride, group=hidden))
            y = b.conv_norm(y, hidden, c_out, 1, 1)
            x = b.add("Add", x, y) if stride == 1 and channels == c_out else y
            channels = c_out
    x = relu6(b.conv_norm(x, channels, 1280, 1, 1))
    return b.model("mobilenetv2", _image(), b.head(x, 1280))


def bert_base(
    seed: int = 0, *, layers: int = 12, hidden: int = 768, heads: int = 12, words: int = 30522
) -> onnx.ModelProto:
    """Return the encoder of BERT (Devlin et al. 2018, arXiv:1810.04805), token ids ``(1, S)``."""
    b = Builder(np.random.default_rng(seed))
    tokens = b.add("Gather", b.normal(words, hidden, fan_in=1, gain=0.02), "ids")
    places = b.normal(1, 128, hidden, fan_in=1, gain=0.02)
    x = _layer_norm(b, b.add("Add", tokens, places), hidden)
    for _ in range(layers):
        x = _layer_norm(b, b.add("Add", _attention(b, x, hidden, heads), x), hidden)
        y = b.linear(_gelu(b, b.linear(x, hidden, 4 * hidden)), 4 * hidden, hidden)
        x = _layer_norm(b, b.add("Add", y, x), hidden)
    port = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 128])
    return b.model("bert_base", port, x)


def _attention(b: Builder, x: str, hidden: int, heads: int) -> str:
    split = b.weight(np.array([1, 128, heads, hidden // heads]))
    q, k, v = (
        b.add("Transpose", b.add("Reshape", b.linear(x, hidden, hidden), split), perm=perm)
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    scores = b.add("Div", b.add("MatMul", q, k), b.weight(np.sqrt(np.float32(hidden // heads))))
    mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
    joined = b.add("Transpose", mixed, perm=[0, 2, 1, 3])
    flat = b.add("Reshape", joined, b.weight(np.array([1, 128, hidden])))
    return b.linear(flat, hidden, hidden)


def _gelu(b: Builder, x: str) -> str:
    error = b.add("Erf", b.add("Div", x, b.weight(np.sqrt(np.float32(2)))))
    weighted = b.add("Mul", x, b.add("Add", error, b.weight(np.float32(1))))
    return b.add("Mul", weighted, b.weight(np.float32(0.5)))


def _layer_norm(b: Builder, x: str, hidden: int) -> str:
    scale = b.weight(b.rng.uniform(0.8, 1.2, hidden))
    return b.add("LayerNormalization", x, scale, b.weight(np.zeros(hidden)), axis=-1)


def _image() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])


def images(count: int, seed: int = 1) -> list[Feeds]:
    """Return normalized pictures of smooth noise: neighbouring pixels are alike, as in photos."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 1, 3, 14, 14), np.float32)
    fine = 0.3 * rng.standard_normal((count, 1, 3, 224, 224), np.float32)
    return [{"image": x} for x in coarse.repeat(16, 3).repeat(16, 4) + fine]


def token_ids(count: int, seed: int = 1, words: int = 30522) -> list[Feeds]:
    """Return sequences of 128 token ids."""
    rng = np.random.default_rng(seed)
    return [{"ids": x} for x in rng.integers(0, words, (count, 1, 128))]


SYNTHETIC: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[int], list[Feeds]]]] = {
    "resnet50": (resnet50, images),
    "mobilenetv2": (mobilenetv2, images),
    "bert_base": (bert_base, token_ids),
}


def written(name: str, folder: Path) -> Path:
    """Build a graph into the folder, once; return its file."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        onnx.save(SYNTHETIC[name][0](), path)
    return path
