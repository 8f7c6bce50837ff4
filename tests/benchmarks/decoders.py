"""LLaMA-shaped decoders of any size with random float16 weights, written without being held.

The graph is what torch's exporter makes of Touvron et al. 2023 (arXiv:2302.13971, section 2.2):
RMSNorm, rotary positions (arXiv:2104.09864, equation 34, in halves), causal attention with shared
key/value heads, SwiGLU. Weights lie in one file of external data beside the model.

usage: python -m tests.benchmarks.decoders OUT.onnx [--blocks N] [--hidden N] ...
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
_PAGE = 4096
_CHUNK = 1 << 22
"""Elements that are drawn at once."""


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder; the defaults are those of LLaMA-7B but for the number of blocks.

    Attributes:
        std: Of the weights: 0.02 keeps float16 activations finite at any of these sizes.
        fused_norm: SimplifiedLayerNormalization in place of nine standard nodes.
    """

    blocks: int = 20
    hidden: int = 4096
    ffn: int = 11008
    heads: int = 32
    kv_heads: int = 32
    vocab: int = 32000
    positions: int = 2048
    dtype: str = "float16"
    std: float = 0.02
    fused_norm: bool = False
    seed: int = 0

    @property
    def head(self) -> int:
        """Return the size of one head."""
        return self.hidden // self.heads


TINY = Decoder(blocks=2, hidden=64, ffn=176, heads=4, kv_heads=2, vocab=256, positions=64, std=0.1)
"""For tests: 0.3 MB."""


class _Writer:
    """Collects nodes and small tensors; large random ones go to the data file at once."""

    def __init__(self, config: Decoder, data: IO[bytes], location: str) -> None:
        self.config, self.data, self.location = config, data, location
        self.dtype = np.dtype(config.dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    def add(self, op: str, *inputs: str, name: str | None = None, **attributes: object) -> str:
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"/{name}", **attributes))
        return name

    def constant(self, name: str, array: object) -> str:
        if all(tensor.name != name for tensor in self.tensors):
            self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        return self.add("MatMul", x, self.normal(f"{name}.weight", inputs, outputs), name=name)

    def normal(self, name: str, rows: int, columns: int) -> str:
        """Write a weight (rows, columns) of normal values."""
        return self._external(name, (rows, columns), self._drawn(rows * columns))

    def table(self, name: str, array: np.ndarray) -> str:
        values = array.astype(self.dtype)
        return self._external(name, values.shape, iter([values]))

    def _drawn(self, size: int) -> Iterator[np.ndarray]:
        """Yield the elements of one weight, in chunks drawn on two threads."""
        seeds = np.random.SeedSequence([self.config.seed, len(self.tensors)])
        sizes = [min(_CHUNK, size - start) for start in range(0, size, _CHUNK)]

        def draw(seed: np.random.SeedSequence, count: int) -> np.ndarray:
            values = np.random.default_rng(seed).standard_normal(count, np.float32)
            return (values * np.float32(self.config.std)).astype(self.dtype)

        with ThreadPoolExecutor(2) as pool:
            children = seeds.spawn(len(sizes))
            for start in range(0, len(sizes), 4):
                yield from pool.map(
                    draw, children[start : start + 4], sizes[start : start + 4], timeout=600
                )

    def _external(self, name: str, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> str:
        offset = -(-self.data.tell() // _PAGE) * _PAGE
        self.data.seek(offset)
        for part in parts:
            self.data.write(part.data)
        tensor = TensorProto(name=name, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        length = math.prod(shape) * self.dtype.itemsize
        entries = {"location": self.location, "offset": offset, "length": length}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        return name


def write_decoder(out: Path, config: Decoder = TINY) -> Path:
    """Write the model to ``out`` and its weights to ``out.data``; return ``out``.

    The model maps ``input_ids`` (int64, batch x sequence, at most ``positions`` long) to ``logits``
    (batch x sequence x vocab). Memory stays below 200 MB, whatever the size.
    """
    location = f"{out.name}.data"
    with (out.parent / location).open("wb") as data:
        writer = _Writer(config, data, location)
        _decoder(writer, config)
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(config.dtype))
    sizes = ["batch", "sequence"]
    graph = helper.make_graph(
        writer.nodes,
        "decoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, sizes)],
        [helper.make_tensor_value_info("logits", dtype, [*sizes, config.vocab])],
        writer.tensors,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), out)
    return out


def _decoder(w: _Writer, config: Decoder) -> None:
    x = w.add("Gather", w.normal("embed.weight", config.vocab, config.hidden), "input_ids")
    mask, rotary = _mask(w), _rotary_tables(w, config)
    for index in range(config.blocks):
        name = f"layers.{index}"
        x = w.add("Add", x, _attention(w, config, name, _norm(w, x, f"{name}.norm1"), mask, rotary))
        x = w.add("Add", x, _feed_forward(w, config, name, _norm(w, x, f"{name}.norm2")))
    x = _norm(w, x, "norm")
    head = w.normal("lm_head.weight", config.hidden, config.vocab)
    w.add("MatMul", x, head, name="logits")


def _norm(w: _Writer, x: str, name: str) -> str:
    gamma = w.constant(f"{name}.weight", np.ones(w.config.hidden, w.dtype))
    if w.config.fused_norm:
        op = "SimplifiedLayerNormalization"
        return w.add(op, x, gamma, name=name, axis=-1, epsilon=1e-5, stash_type=1)
    x = w.add("Cast", x, to=TensorProto.FLOAT)
    square = w.add("Pow", x, w.constant("two", np.float32(2)))
    mean = w.add("ReduceMean", square, axes=[-1], keepdims=1)
    root = w.add("Sqrt", w.add("Add", mean, w.constant("epsilon", np.float32(1e-5))))
    unit = w.add("Mul", x, w.add("Div", w.constant("one", np.float32(1)), root))
    to = helper.np_dtype_to_tensor_dtype(w.dtype)
    return w.add("Mul", gamma, w.add("Cast", unit, to=to), name=name)


def _positions(w: _Writer) -> str:
    last = w.constant("axis.1", np.int64(1))
    length = w.add("Gather", w.add("Shape", "input_ids"), last, axis=0)
    return w.add("Range", w.constant("zero", np.int64(0)), length, last, name="positions")


def _mask(w: _Writer) -> str:
    """Return 0 where a token may look, -10000 where it may not; (sequence, sequence)."""
    columns = _positions(w)
    rows = w.add("Unsqueeze", columns, w.constant("axes.1", np.array([1])))
    seen, unseen = (w.constant(n, w.dtype.type(v)) for n, v in (("seen", 0), ("unseen", -1e4)))
    return w.add("Where", w.add("LessOrEqual", columns, rows), seen, unseen, name="mask")


def _rotary_tables(w: _Writer, config: Decoder) -> tuple[str, str]:
    """Return cosine and sine for each position of the sequence; (sequence, head)."""
    rates = 10000.0 ** (-np.arange(0, config.head, 2) / config.head)
    angles = np.outer(np.arange(config.positions), np.concatenate([rates, rates]))
    cos = w.add("Gather", w.table("rotary.cos", np.cos(angles)), "positions")
    sin = w.add("Gather", w.table("rotary.sin", np.sin(angles)), "positions")
    return cos, sin


def _rotated(w: _Writer, x: str, rotary: tuple[str, str]) -> str:
    half = w.constant("halves", np.array([w.config.head // 2] * 2))
    first, second = f"{x}.first", f"{x}.second"
    w.nodes.append(helper.make_node("Split", [x, half], [first, second], axis=-1, name=f"/{x}.cut"))
    turned = w.add("Concat", w.add("Neg", second), first, axis=-1)
    return w.add("Add", w.add("Mul", x, rotary[0]), w.add("Mul", turned, rotary[1]))


def _heads(w: _Writer, x: str, heads: int) -> str:
    shape = w.constant(f"split.{heads}", np.array([0, 0, heads, w.config.head]))
    return w.add("Transpose", w.add("Reshape", x, shape), perm=[0, 2, 1, 3])


def _repeated(w: _Writer, x: str, config: Decoder) -> str:
    """Return each key/value head once for every query head that reads it."""
    if config.heads == config.kv_heads:
        return x
    heads = np.repeat(np.arange(config.kv_heads), config.heads // config.kv_heads)
    return w.add("Gather", x, w.constant("shared", heads), axis=1)


def _attention(
    w: _Writer, config: Decoder, name: str, x: str, mask: str, rotary: tuple[str, str]
) -> str:
    inner, shared = config.hidden, config.kv_heads * config.head
    q = _heads(w, w.linear(x, f"{name}.q", config.hidden, inner), config.heads)
    k = _heads(w, w.linear(x, f"{name}.k", config.hidden, shared), config.kv_heads)
    v = _heads(w, w.linear(x, f"{name}.v", config.hidden, shared), config.kv_heads)
    q, k = _rotated(w, q, rotary), _rotated(w, k, rotary)
    k, v = _repeated(w, k, config), _repeated(w, v, config)
    scores = w.add("MatMul", q, w.add("Transpose", k, perm=[0, 1, 3, 2]))
    scale = w.constant("scale", w.dtype.type(config.head**-0.5))
    weights = w.add("Softmax", w.add("Add", w.add("Mul", scores, scale), mask), axis=-1)
    mixed = w.add("Transpose", w.add("MatMul", weights, v), perm=[0, 2, 1, 3])
    joined = w.add("Reshape", mixed, w.constant("join", np.array([0, 0, inner])))
    return w.linear(joined, f"{name}.o", inner, config.hidden)


def _feed_forward(w: _Writer, config: Decoder, name: str, x: str) -> str:
    gate = w.linear(x, f"{name}.gate", config.hidden, config.ffn)
    up = w.linear(x, f"{name}.up", config.hidden, config.ffn)
    gated = w.add("Mul", w.add("Mul", gate, w.add("Sigmoid", gate)), up)
    return w.linear(gated, f"{name}.down", config.ffn, config.hidden)


def main() -> None:
    """Parse, write, say how large it became."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decoders")
    parser.add_argument("out", type=Path)
    for field in dataclasses.fields(Decoder):
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    out = write_decoder(options.pop("out"), Decoder(**options))
    size = out.with_name(f"{out.name}.data").stat().st_size
    print(f"wrote {out}: {size / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
