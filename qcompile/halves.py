"""What computes in float becomes half precision: the schemes fp16 and bf16, and remainders."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qcompile.data import Split
from qcompile.devices import FLOAT_TYPES
from qcompile.errors import PlanError
from qcompile.frontend import Loaded
from qcompile.graph.edit import Names
from qcompile.graph.halves import HALVES, is_float32
from qcompile.graph.protocol import Fact, GraphPass
from qcompile.graph.runner import run_passes
from qcompile.graph.walk import is_op
from qcompile.passes.cast_floats import CastFloats
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.half_nodes import HalfNodes
from qcompile.passes.hold_floats import HoldFloats
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues
from qcompile.passes.round_floats import RoundFloats
from qcompile.passes.soften_masks import SoftenMasks
from qcompile.plan import FLOATS, NodePlan, Plan
from qcompile.planning.followed import check_plan
from qcompile.planning.half import float32_nodes
from qcompile.planning.plan import wishes_of
from qcompile.planning.wishes import with_ends
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import HighPrecision, Recipe
from qcompile.samples import Port
from qcompile.targets.target import Half, Target

BF16_OPSET = 22
"""Convolutions and pooling take bfloat16 from here on."""

_SIZES = ("Shape", "Size")
"""Operators that take halves and look at no number of them."""

_FP32 = "fp32: "
"""Stands in a reason before why the node is in fp32, and not in half precision."""


@dataclass(frozen=True)
class Halves:
    """The float part of one build.

    Attributes:
        loaded: The float model.
        data: Samples that show which nodes would overflow or lose too much.
        recipe: What was asked for.
        target: What the engine runs on.
        device: The kind of it.
        edited: A plan to follow instead of measuring.
        half: fp16 or bf16.
        log: Hears of stages and notices.
    """

    loaded: Loaded
    data: Split
    recipe: Recipe
    target: Target
    device: str
    edited: Plan | None
    half: Half
    log: StageLog

    def cast(self, made: Quantized, dump_passes: Path | None) -> Quantized:
        """Cast what computes in float, but for what must not be.

        Args:
            made: Graph and plan of the scheme.
            dump_passes: Folder for the graph's text after the pass.
        """
        with self.log.stage("halves"):
            half, keep_ports = FLOAT_TYPES[self.half], not self.recipe.half_ports
            kept = self._kept()
            folder = dump_passes / "halves" if dump_passes else None
            run_passes(made.model, [SoftenMasks()], holds=self.loaded.holds)
            if self.half == "bf16":
                newer = [ConvertOpset(opset=BF16_OPSET), NameValues(), InferShapes()]
                run_passes(made.model, newer, holds=self.loaded.holds)
            nodes = HalfNodes(made.model, HALVES[half], kept, float_ports=keep_ports)
            plan = _marked(made.plan, self.half, nodes)
            steps: list[GraphPass] = [CastFloats(dtype=half, kept=kept, keep_ports=keep_ports)]
            if self._for_tensorrt():
                steps.append(HoldFloats())
            runs = run_passes(made.model, steps, holds=self.loaded.holds, dump_dir=folder)
        return replace(made, plan=plan, runs=[*made.runs, *runs])

    def _for_tensorrt(self) -> bool:
        return self.target.name in ("tensorrt", "tensorrt-rtx") or self.device == "tensorrt"

    def _kept(self) -> dict[str, str]:
        """Return the nodes that stay in fp32, with reasons."""
        model, recipe, plan = self.loaded.model, self.recipe, self.edited
        samples = self.data.calibration or self.data.evaluation
        kept: dict[str, str] = {}
        if plan is None or recipe.scheme not in FLOATS:
            model = self.loaded.model.clone()
            run_passes(model, [SoftenMasks()], holds=self.loaded.holds)
            kept = float32_nodes(
                model, samples, FLOAT_TYPES[self.half], jobs=recipe.jobs or 1, progress=self.log
            )
        if plan is not None:  # it knows all but what is behind codes
            names = [node.name or "" for node in model.graph]
            behind = {name: reason for name, reason in kept.items() if plan.is_quantized(name)}
            return behind | {n: _why(plan, n) for n in names if plan.precision(n) == "float"}
        if recipe.scheme in FLOATS:
            wishes = with_ends(wishes_of(recipe), model.graph, self.target.static)
            asked = ((node.name or "", wishes.reason(node)) for node in model.graph)
            kept |= {name: reason for name, reason in asked if reason}
        return kept | self._without_kernel()

    def _without_kernel(self) -> dict[str, str]:
        """Return the nodes that the device has no kernel for in this half precision."""
        device = self.target.devices.get(self.device)
        if device is None or device.kernels is None:
            return {}
        half, none = FLOAT_TYPES[self.half], frozenset[str]()
        return {
            node.name or "": f"{self.target.name} has no {node.op_type} in {half} on {self.device}"
            for node in self.loaded.model.graph
            if half not in device.kernels.get((node.domain, node.op_type), none)
        }


def stand_in(
    model: Path, half: Half, holds: frozenset[Fact], source: Collection[Port] = ()
) -> ir.Model:
    """Return the graph that simulates a file of half precision; it reads and gives float32.

    But for the ports that are float16 in the source: those stay so.

    ONNX Runtime has hardly any bfloat16 on CPU, and what lacks a float16 kernel computes there
    without rounding.

    Args:
        model: What ``Halves`` made, as it was written.
        half: fp16 or bf16.
        holds: Facts that hold of it.
        source: Inputs and outputs of the model that it was made of.
    """
    graph = ir.load(model)
    run_passes(graph, [RoundFloats(dtype=FLOAT_TYPES[half])], holds=holds)
    kept = {port.name for port in source if port.dtype == np.float16}
    _widen_ports(graph, HALVES[FLOAT_TYPES[half]].dtype, kept)
    return graph


def check_halves(plan: Plan, remainder: HighPrecision) -> None:
    """Check that a plan that the user gave has no other half precision than the build.

    Raises:
        PlanError: It has; names the node.
    """
    for name, entry in plan.nodes.items():
        if entry.precision in FLOAT_TYPES and entry.precision != remainder:
            raise PlanError(
                f"--plan: node {name} is {entry.precision}, but what this build computes in float "
                f"becomes {remainder}: build with --high-precision {entry.precision}, or edit the "
                "plan"
            )


def nothing_quantized(
    loaded: Loaded, scheme: str, target: Target, device: str, edited: Plan | None
) -> Quantized:
    """Return the float graph as a scheme without codes hands it on.

    Raises:
        PlanError: The edited plan does not fit the model.
    """
    if edited is not None:
        check_plan(edited, loaded.model, loaded.digest, target, device, scheme)
    nodes = {
        node.name or "": NodePlan(op=node.op_type, precision="float", reason="")
        for node in loaded.model.graph.all_nodes()
    }
    plan = Plan(
        model=loaded.digest,
        target=target.name,
        device=device,
        scheme=scheme,
        tensors={},
        nodes=nodes,
    )
    return Quantized(model=loaded.model.clone(), plan=plan, runs=[])


def _marked(plan: Plan, half: Half, nodes: HalfNodes) -> Plan:
    """Note in the plan which nodes compute in half precision, and why the others do not.

    A node with codes keeps its precision; what it gives, or its scales, may have to be fp32.
    """
    halves = {node.name for node in nodes.slots if not is_op(node, *_SIZES)}
    reasons = {node.name: reason for node, reason in nodes.reasons.items()}
    others = {node.name: _why_neither(node, nodes.graph) for node in nodes.graph.all_nodes()}

    def entry(name: str, before: NodePlan) -> NodePlan:
        own, why = before.reason.partition(_FP32)[0].removesuffix("; "), reasons.get(name, "")
        precision = before.precision
        if precision in FLOATS:
            precision = half if name in halves else "float"
        texts = [own, _FP32 + why if why and why != own else ""]
        reason = "; ".join(text for text in texts if text)
        if precision == "float":
            reason = reason or others.get(name, "")
        return before.model_copy(update={"precision": precision, "reason": reason})

    return plan.model_copy(update={"nodes": {n: entry(n, e) for n, e in plan.nodes.items()}})


def _why(plan: Plan, name: str) -> str:
    """Return why a plan leaves a node in fp32."""
    if name not in plan.nodes:
        return "not in the plan"
    own, _, why = plan.nodes[name].reason.partition(_FP32)
    return why or own or "the plan says so"


def _why_neither(node: ir.Node, graph: ir.Graph) -> str:
    """Return why a node that is neither in half precision nor kept from it is in float."""
    if node.graph is not graph:
        return "inside If, Loop or Scan: control flow stays in fp32"
    floats = any(map(is_float32, (*node.inputs, *node.outputs)))
    if floats and not is_op(node, *_SIZES):
        return "between nodes in fp32"
    return "computes with no floats"


def _widen_ports(model: ir.Model, half: ir.DataType, kept: Collection[str]) -> None:
    """Let other ports of a half type be float32; numbers stay those of the half type."""
    graph, names = model.graph, Names(model)
    for value in [v for v in graph.inputs if v.dtype == half and v.name not in kept]:
        readers = list(value.uses())
        value.type = ir.TensorType(ir.DataType.FLOAT)
        rounded = _cast(value, half, names.fresh(value, "rounded"))
        graph.insert_before(graph[0], rounded.producer())  # type: ignore[arg-type]
        for node, index in readers:
            node.replace_input_with(index, rounded)
    for index, value in enumerate(graph.outputs):
        if value.dtype == half and value.name not in kept:
            name, value.name = str(value.name), names.fresh(value, "rounded")
            graph.outputs[index] = _cast(value, ir.DataType.FLOAT, name)
            graph.append(graph.outputs[index].producer())  # type: ignore[arg-type]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    node = ir.node("Cast", [value], attributes={"to": int(dtype)}, name=f"{name}.Cast")
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(dtype), value.shape
    return result
