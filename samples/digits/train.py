"""Trains a small residual network on scikit-learn's digits, in numpy, and writes it as ONNX.

Writes beside itself: ``digits.onnx``, ``calib.npz`` (200 images that training also saw) and
``eval.npz`` (597 that it did not). Takes ten seconds; needs numpy, onnx and scikit-learn.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
CHANNELS = 32
EPOCHS = 12
BATCH = 50
STEP = 2e-3
EPSILON = 1e-5

Array = npt.NDArray[np.float32]


class Conv:
    """3x3 convolution with padding 1; ``w`` is ``(C_out, C_in, 3, 3)``."""

    def __init__(self, rng: np.random.Generator, c_in: int, c_out: int) -> None:
        scale = np.sqrt(2 / (9 * c_in))
        self.params = {"w": (scale * rng.standard_normal((c_out, c_in, 3, 3))).astype(np.float32)}
        self.grads: dict[str, Array] = {}

    def forward(self, x: Array) -> Array:
        """Map ``(N, C_in, H, W)`` to ``(N, C_out, H, W)``."""
        n, _, h, w = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        self.columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, -1)
        y = self.columns @ self.params["w"].reshape(len(self.params["w"]), -1).T
        return y.reshape(n, h, w, -1).transpose(0, 3, 1, 2)

    def backward(self, dy: Array) -> Array:
        """Keep the gradient of ``w``; return the one of the input."""
        weight = self.params["w"]
        (n, c_out, h, w), c_in = dy.shape, weight.shape[1]
        rows = dy.transpose(0, 2, 3, 1).reshape(-1, c_out)
        self.grads = {"w": (rows.T @ self.columns).reshape(weight.shape)}
        columns = (rows @ weight.reshape(c_out, -1)).reshape(n, h, w, c_in, 3, 3)
        dx = np.zeros((n, c_in, h + 2, w + 2), np.float32)
        for i in range(3):
            for j in range(3):
                dx[:, :, i : i + h, j : j + w] += columns[..., i, j].transpose(0, 3, 1, 2)
        return dx[:, :, 1:-1, 1:-1]


class Norm:
    """Batch normalization over ``(N, H, W)``."""

    def __init__(self, channels: int) -> None:
        self.params = {
            "scale": np.ones(channels, np.float32),
            "bias": np.zeros(channels, np.float32),
        }
        self.grads: dict[str, Array] = {}
        self.mean = np.zeros(channels, np.float32)
        self.var = np.ones(channels, np.float32)

    def forward(self, x: Array) -> Array:
        """Normalize with the statistics of the batch, and follow them for the exported model."""
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        self.mean, self.var = 0.9 * self.mean + 0.1 * mean, 0.9 * self.var + 0.1 * var
        self.inverse = _spread(1 / np.sqrt(var + EPSILON))
        self.normal = (x - _spread(mean)) * self.inverse
        return _spread(self.params["scale"]) * self.normal + _spread(self.params["bias"])

    def backward(self, dy: Array) -> Array:
        """Keep the gradients of scale and bias; return the one of the input."""
        self.grads = {"scale": (dy * self.normal).sum((0, 2, 3)), "bias": dy.sum((0, 2, 3))}
        count = dy.size / dy.shape[1]
        shared = _spread(self.grads["bias"]) + self.normal * _spread(self.grads["scale"])
        return _spread(self.params["scale"]) * self.inverse * (dy - shared / count)


class Network:
    """Conv, a residual block, max-pool, Conv, global average, linear."""

    def __init__(self, rng: np.random.Generator) -> None:
        c = CHANNELS
        self.convs = [Conv(rng, a, b) for a, b in ((1, c), (c, c), (c, c), (c, c))]
        self.norms = [Norm(c) for _ in self.convs]
        self.params = {
            "w": (rng.standard_normal((10, c)) / np.sqrt(c)).astype(np.float32),
            "b": np.zeros(10, np.float32),
        }
        self.grads: dict[str, Array] = {}

    def layers(self) -> list["Conv | Norm | Network"]:
        """Return all that has parameters."""
        return [*self.convs, *self.norms, self]

    def step(self, x: Array, label: npt.NDArray[np.int64]) -> float:
        """Run forward and backward over one batch; return the mean cross-entropy."""
        logits = self._forward(x)
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        chance = shifted / shifted.sum(1, keepdims=True)
        rows = np.arange(len(x))
        loss = -np.log(chance[rows, label]).mean()
        chance[rows, label] -= 1
        self._backward(chance / len(x))
        return float(loss)

    def _forward(self, x: Array) -> Array:
        self.signs: list[npt.NDArray[np.bool_]] = []
        stem = self._relu(self._conv(0, x))
        block = self._conv(2, self._relu(self._conv(1, stem)))
        joined = self._relu(block + stem)
        n, c, h, w = joined.shape
        tiles = joined.reshape(n, c, h // 2, 2, w // 2, 2)
        pooled = tiles.max((3, 5))
        self.peaks = tiles == pooled[:, :, :, None, :, None]
        self.features = self._relu(self._conv(3, pooled)).mean((2, 3))
        return self.features @ self.params["w"].T + self.params["b"]

    def _backward(self, dy: Array) -> None:
        self.grads = {"w": dy.T @ self.features, "b": dy.sum(0)}
        stem_sign, inner_sign, joined_sign, last_sign = self.signs
        area = last_sign.shape[2] * last_sign.shape[3]
        d = (dy @ self.params["w"])[:, :, None, None] / area * last_sign
        d = self._conv_backward(3, d)
        d = (self.peaks * d[:, :, :, None, :, None]).reshape(joined_sign.shape) * joined_sign
        inner = self._conv_backward(2, d) * inner_sign
        self._conv_backward(0, (d + self._conv_backward(1, inner)) * stem_sign)

    def _conv(self, index: int, x: Array) -> Array:
        return self.norms[index].forward(self.convs[index].forward(x))

    def _conv_backward(self, index: int, dy: Array) -> Array:
        return self.convs[index].backward(self.norms[index].backward(dy))

    def _relu(self, x: Array) -> Array:
        self.signs.append(x > 0)
        return np.maximum(x, 0)


def _spread(x: Array) -> Array:
    return x[None, :, None, None]


def train(x: Array, label: npt.NDArray[np.int64], rng: np.random.Generator) -> Network:
    """Fit a network with Adam (Kingma and Ba 2014, arXiv:1412.6980, algorithm 1)."""
    network = Network(rng)
    moments = {
        (i, key): (np.zeros_like(value), np.zeros_like(value))
        for i, layer in enumerate(network.layers())
        for key, value in layer.params.items()
    }
    t = 0
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))
        rate = STEP * (1 - epoch / EPOCHS)
        loss = 0.0
        for start in range(0, len(x), BATCH):
            chosen = order[start : start + BATCH]
            loss += network.step(x[chosen], label[chosen])
            t += 1
            for (i, key), (mean, square) in moments.items():
                layer = network.layers()[i]
                grad = layer.grads[key]
                mean[...] += 0.1 * (grad - mean)
                square[...] += 0.001 * (grad**2 - square)
                fraction = (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
                layer.params[key] -= rate * fraction
        print(f"epoch {epoch + 1}: mean loss {loss * BATCH / len(x):.4f}")
    return network


def exported(network: Network) -> onnx.ModelProto:
    """Return the network as ONNX, as an exporter writes it: batch norms stay nodes of their own."""
    nodes, weights = [], {"fc.weight": network.params["w"], "fc.bias": network.params["b"]}

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:  # noqa: ANN401
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attributes))
        return output

    def conv(index: int, x: str) -> str:
        layer, norm = network.convs[index], network.norms[index]
        weights[f"conv{index}.weight"] = layer.params["w"]
        fields = {**norm.params, "mean": norm.mean, "var": norm.var}
        weights.update({f"norm{index}.{key}": value for key, value in fields.items()})
        y = add("Conv", [x, f"conv{index}.weight"], f"conv{index}", pads=[1] * 4)
        parameters = [f"norm{index}.{key}" for key in fields]
        return add("BatchNormalization", [y, *parameters], f"norm{index}", epsilon=EPSILON)

    stem = add("Relu", [conv(0, "image")], "relu0")
    block = conv(2, add("Relu", [conv(1, stem)], "relu1"))
    joined = add("Relu", [add("Add", [block, stem], "add")], "relu2")
    pooled = add("MaxPool", [joined], "pool", kernel_shape=[2, 2], strides=[2, 2])
    last = add("GlobalAveragePool", [add("Relu", [conv(3, pooled)], "relu3")], "mean")
    flat = add("Flatten", [last], "flat")
    add("Gemm", [flat, "fc.weight", "fc.bias"], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], producer_name="digits"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main(folder: Path = HERE) -> None:
    """Train and write the model and both sets of images."""
    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    label = digits.target.astype(np.int64)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))
    fit, held = order[:1200], order[1200:]
    network = train(x[fit], label[fit], rng)
    onnx.save(exported(network), folder / "digits.onnx")
    np.savez_compressed(folder / "calib.npz", image=x[fit[:200]], label=label[fit[:200]])
    np.savez_compressed(folder / "eval.npz", image=x[held], label=label[held])


if __name__ == "__main__":
    main()
