"""Measured error: what a grid on one tensor does to the nodes that read it, on real activations.

The probe graph holds, beside each tensor's readers, a copy of them that reads the tensor rounded
to a grid whose scale and zero point are inputs of the graph. Both results are subtracted and only
sums of squares leave the runtime, so one run measures one candidate grid of every tensor at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qcompile.graph.edit import add_constant
from qcompile.graph.walk import is_op
from qcompile.numerics.grids import code_dtype
from qcompile.planning.activation_grids import activation_grid
from qcompile.planning.extra_nodes import ExtraNodes
from qcompile.runtime.ort import Session
from qcompile.samples import Samples
from qcompile.targets.target import Types

Range = tuple[float, float]
CARRIED = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Split")


@dataclass(frozen=True)
class Reading:
    """Sums of squares over the probed samples, at one value behind a reader of one tensor.

    Attributes:
        error: Of the difference that rounding the tensor makes.
        power: Of the float output.
    """

    error: float
    power: float

    @property
    def relative(self) -> float:
        """Relative L2 error."""
        return float(np.sqrt(self.error / self.power)) if self.power > 0 else float(self.error > 0)


class Probe:
    """A session that measures grids for a set of tensors on fixed samples."""

    def __init__(
        self,
        model: ir.Model,
        readers: Mapping[str, Sequence[str]],
        types: Types,
        samples: Samples,
        jobs: int,
    ) -> None:
        """Build the probe graph.

        Args:
            model: The lowered float graph; it is not changed.
            readers: Tensor name to the nodes that would read it rounded; none means the tensor
                itself is what matters (a graph output).
            types: Of activation codes.
            samples: A few samples; every measurement runs all of them.
            jobs: Samples measured at once.
        """
        self.samples, self.jobs, self.types = samples, jobs, types
        graph = model.clone()
        self.keys = list(_add_taps(graph, readers, types))
        self.tensors = list(readers)
        self.session = Session(graph, threads=1)
        outputs = [f"{tensor}|{end}|{what}" for tensor, end in self.keys for what in "ep"]
        self.outputs = outputs

    def measure(self, ranges: Mapping[str, Range]) -> dict[tuple[str, str], Reading]:
        """Round each tensor to the grid of its range; (tensor, value behind it) to the error."""
        grids = self._grids(ranges)

        def one(index: int) -> np.ndarray:
            results = self.session.run({**self.samples[index], **grids}, self.outputs)
            return np.asarray([float(results[name]) for name in self.outputs])

        with ThreadPoolExecutor(self.jobs) as pool:
            sums = np.sum(list(pool.map(one, range(len(self.samples)))), axis=0).reshape(-1, 2)
        return {key: Reading(*map(float, row)) for key, row in zip(self.keys, sums, strict=True)}

    def _grids(self, ranges: Mapping[str, Range]) -> dict[str, np.ndarray]:
        feeds: dict[str, np.ndarray] = {}
        for name in self.tensors:
            scale, zero = activation_grid(*ranges[name], self.types)
            feeds[f"{name}|scale"] = np.asarray(scale, np.float32)
            if not self.types.symmetric:
                feeds[f"{name}|zero"] = np.asarray(zero, self.types.activation)
        return feeds


def _add_taps(
    model: ir.Model, readers: Mapping[str, Sequence[str]], types: Types
) -> Iterator[tuple[str, str]]:
    graph = model.graph
    values = {v.name: v for v in graph.inputs} | {o.name: o for n in graph for o in n.outputs}
    nodes = {node.name: node for node in graph}
    graph.outputs.clear()
    tapper = _Tapper(model)
    seen: set[tuple[str, str]] = set()
    for name, reading in readers.items():
        value = values[name]
        rounded = tapper.rounded(value, types)
        ends = [
            (end, copy)
            for reader in reading
            for end, copy in tapper.copies(nodes[reader], value, rounded)
        ] or [(value, rounded)]
        for end, copy in ends:
            key = (name, end.name or "")
            if key in seen:
                continue
            seen.add(key)
            tapper.output(f"{key[0]}|{key[1]}|e", tapper.op("Sub", [end, copy]))
            tapper.output(f"{key[0]}|{key[1]}|p", end)
            yield key
    graph.sort()


def fed_grid(graph: ir.Graph, name: str, types: Types) -> tuple[ir.Value, ir.Value]:
    """Return scale and zero point of a tensor's grid: new inputs of the graph, ``<name>|scale``.

    The zero point of a symmetric grid is a constant.
    """
    scale = ir.Value(
        name=f"{name}|scale", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([])
    )
    graph.inputs.append(scale)
    if types.symmetric:
        return scale, add_constant(
            graph, f"{name}|zero", np.zeros((), code_dtype(types.activation))
        )
    kind = ir.TensorType(ir.DataType[types.activation.upper()])
    zero = ir.Value(name=f"{name}|zero", type=kind, shape=ir.Shape([]))
    graph.inputs.append(zero)
    return scale, zero


class _Tapper(ExtraNodes):
    """Adds rounded readers to a graph, and what measures them."""

    def __init__(self, model: ir.Model) -> None:
        super().__init__(model)
        self.originals = {node.name for node in model.graph}

    def rounded(self, value: ir.Value, types: Types) -> ir.Value:
        """Return the value behind a QDQ pair whose grid is fed; a zero point of 0 is a constant."""
        scale, zero = fed_grid(self.graph, value.name or "", types)
        codes = self.op("QuantizeLinear", [value, scale, zero])
        return self.op("DequantizeLinear", [codes, scale, zero])

    def copies(
        self, node: ir.Node, value: ir.Value, rounded: ir.Value
    ) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Copy a reader with the rounded input; go on through nodes that only move data."""
        copies = self.copy(node, [rounded if v is value else v for v in node.inputs])
        for old, new in zip(node.outputs, copies, strict=True):
            uses = [use.node for use in old.uses() if use.node.name in self.originals]
            if is_op(node, *CARRIED) and uses:
                for reader in {id(n): n for n in uses}.values():
                    yield from self.copies(reader, old, new)
            elif old.dtype == ir.DataType.FLOAT:
                yield old, new

    def output(self, name: str, value: ir.Value) -> None:
        """Export the sum of squares of a value."""
        node = ir.node("ReduceSumSquare", [value], attributes={"keepdims": 0})
        node.name = f"{name}|sum"
        node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        node.outputs[0].shape = ir.Shape([])
        self.graph.append(node)
        self.graph.outputs.append(node.outputs[0])
