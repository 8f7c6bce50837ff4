"""Small graphs, the ranges that they really have, and what they become when they are quantized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

from qcompile.graph.protocol import Fact
from qcompile.graph.runner import run_passes
from qcompile.graph.verify import verify
from qcompile.numerics.grids import Codes
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.name_values import NameValues
from qcompile.plan import Plan
from qcompile.planning.plan import activations_of, assemble
from qcompile.planning.ranges import Choice
from qcompile.planning.select import Selection, select
from qcompile.planning.wishes import Wishes
from qcompile.recipe import Cpu
from qcompile.runtime.ort import Session, kernel_nodes
from qcompile.samples import Array, Feeds
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import Role

HOLDS = frozenset({Fact.NAMED, Fact.TYPED})


def graph_of(inputs: str, body: str, outputs: str = "y", **weights: Array) -> ir.Model:
    """Build a model from the parser's text; nodes are named by ``[name]`` before them.

    Outputs without a type are float; shapes of outputs are inferred.
    """
    names = [name.strip() for name in outputs.split(",")]
    typed = ", ".join(name if " " in name else f"float[] {name}" for name in names)
    text = f'<ir_version: 10, opset_import: ["" : 21]>\ng ({inputs}) => ({typed}) {{\n{body}\n}}'
    proto = onnx.parser.parse_model(text)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    model = ir.from_proto(proto)
    NameValues()(model)
    InferShapes()(model)
    verify(model)
    return model


def normal(seed: int, *shape: int, scale: float = 1.0) -> Array:
    """Return float32 numbers of a normal distribution."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def feeds_of(model: ir.Model, count: int = 2, seed: int = 0) -> list[Feeds]:
    """Return standard normal samples; named dimensions become 2."""
    rng = np.random.default_rng(seed)
    shapes = {
        str(v.name): [d if isinstance(d, int) else 2 for d in v.shape or ()]
        for v in model.graph.inputs
    }
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def all_values(model: ir.Model, samples: Sequence[Feeds]) -> list[dict[str, Array]]:
    """Return every float value of the main graph for each sample, by plain execution."""
    tapped = model.clone()
    values = [out for node in tapped.graph for out in node.outputs if out.name]
    tapped.graph.outputs.clear()
    tapped.graph.outputs.extend(v for v in values if v.dtype == ir.DataType.FLOAT)
    session = Session(tapped, optimize=False)
    return [{**feeds, **session.run(feeds)} for feeds in samples]


def minmax(model: ir.Model, names: Sequence[str], samples: Sequence[Feeds]) -> dict[str, Choice]:
    """Return the range of each named value over the samples."""
    seen = all_values(model, samples)
    return {
        name: Choice(
            float(min(s[name].min() for s in seen)),
            float(max(s[name].max() for s in seen)),
            "minmax",
            {},
        )
        for name in names
    }


@dataclass(frozen=True)
class Quantized:
    """A float graph and all that becomes of it."""

    source: ir.Model
    selection: Selection
    plan: Plan
    model: ir.Model

    def precision(self) -> dict[str, str]:
        """Return node name to precision."""
        return {name: entry.precision for name, entry in self.plan.nodes.items()}

    def kernels(self) -> dict[str, str]:
        """Return the name to the operator of each node that ONNX Runtime runs."""
        return {kernel.name: kernel.op for kernel in kernel_nodes(self.model)}

    def missing(self) -> dict[str, str]:
        """Return the int8 nodes whose int8 kernel was not obtained, with what runs instead."""
        rules = ORT_CPU.rules("int8")
        found = self.kernels()
        return {
            name: found.get(name, "nothing")
            for name, entry in self.plan.nodes.items()
            if entry.precision == "int8"
            and rules[entry.op].role in (Role.WEIGHTED, Role.FOLLOWER)
            and found.get(name) not in rules[entry.op].kernels
        }

    def run(self, feeds: Feeds, *, optimize: bool) -> dict[str, Array]:
        """Run the quantized graph as an engine, or as it is written."""
        return Session(self.model, optimize=optimize).run(feeds)

    def engine_error(self) -> float:
        """Return the relative L2 distance of the engine's ``y`` from the source's, on a sample."""
        feeds = feeds_of(self.source)[0]
        exact = Session(self.source).run(feeds)["y"]
        found = self.run(feeds, optimize=True)["y"]
        return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def quantize_graph(
    model: ir.Model,
    *,
    cpu: Cpu = "vnni",
    wishes: Wishes | None = None,
    samples: Sequence[Feeds] | None = None,
    codes: Mapping[str, Codes] | None = None,
    fence: bool = True,
) -> Quantized:
    """Select, take ranges by minmax over the samples, and write the plan into a copy."""
    selection = select(model, ORT_CPU, "int8", wishes or Wishes())
    choices = minmax(model, activations_of(selection), samples or feeds_of(model))
    plan = assemble(model, selection, ORT_CPU, cpu, "int8", choices)
    written = model.clone()
    steps = [InsertQdq(plan=plan, codes=codes or {})]
    run_passes(written, [*steps, FenceFloatNodes()] if fence else list(steps), holds=HOLDS)
    verify(written)
    return Quantized(model, selection, plan, written)
