"""What computes in float becomes half precision: the schemes fp16 and bf16, and remainders."""

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qcompile.data import Split
from qcompile.frontend import Loaded
from qcompile.graph.halves import HALVES
from qcompile.graph.runner import run_passes
from qcompile.passes.cast_floats import CastFloats
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.half_nodes import HalfNodes
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.name_values import NameValues
from qcompile.passes.round_floats import RoundFloats
from qcompile.plan import FLOATS, NodePlan, Plan
from qcompile.planning.half import float32_nodes
from qcompile.planning.wishes import Wishes
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import HighPrecision, Recipe
from qcompile.targets.target import Target

TYPES = {"fp16": "float16", "bf16": "bfloat16"}
"""Half precision by option, and its name in ONNX."""

BF16_OPSET = 22
"""Convolutions and pooling take bfloat16 from here on."""


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
    half: HighPrecision
    log: StageLog

    def cast(self, made: Quantized, dump_passes: Path | None) -> Quantized:
        """Cast what computes in float, but for what must not be.

        Args:
            made: Graph and plan of the scheme.
            dump_passes: Folder for the graph's text after the pass.
        """
        with self.log.stage("halves"):
            half, keep_ports = TYPES[self.half], not self.recipe.half_ports
            kept = self._kept()
            folder = dump_passes / "halves" if dump_passes else None
            if self.half == "bf16":
                newer = [ConvertOpset(opset=BF16_OPSET), NameValues(), InferShapes()]
                run_passes(made.model, newer, holds=self.loaded.holds)
            nodes = HalfNodes(made.model, HALVES[half], kept, float_ports=keep_ports)
            plan = _marked(made.plan, self.half, nodes)
            step = CastFloats(dtype=half, kept=kept, keep_ports=keep_ports)
            runs = run_passes(made.model, [step], holds=self.loaded.holds, dump_dir=folder)
        return replace(made, plan=plan, runs=[*made.runs, *runs], stand_in=self._stand_in(made))

    def _stand_in(self, made: Quantized) -> ir.Model:
        """Return what to simulate.

        ONNX Runtime has hardly any bfloat16 on CPU, and what lacks a float16 kernel computes there
        without rounding.
        """
        model = made.model.clone()
        run_passes(model, [RoundFloats(dtype=TYPES[self.half])], holds=self.loaded.holds)
        return model

    def _kept(self) -> dict[str, str]:
        """Return the nodes that stay in fp32, with reasons."""
        if self.edited is not None:
            nodes = self.edited.nodes.items()
            return {name: entry.reason for name, entry in nodes if entry.precision == "float"}
        samples = self.data.calibration or self.data.evaluation
        jobs = self.recipe.jobs or 1
        kept = float32_nodes(
            self.loaded.model, samples, TYPES[self.half], jobs=jobs, progress=self.log
        )
        wishes = Wishes(patterns=self.recipe.exclude, operators=self.recipe.exclude_ops)
        if self.recipe.scheme in FLOATS:
            asked = ((n.name or "", wishes.reason(n)) for n in self.loaded.model.graph)
            kept |= {name: reason for name, reason in asked if reason}
        return kept


def nothing_quantized(loaded: Loaded, scheme: str, target: Target, device: str) -> Quantized:
    """Return the float graph as a scheme without codes hands it on."""
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


def _marked(plan: Plan, half: HighPrecision, nodes: HalfNodes) -> Plan:
    """Note in the plan which nodes compute in half precision, and why the others do not."""
    halves = {node.name for node in nodes.slots}
    reasons = {node.name: reason for node, reason in nodes.reasons.items()}

    def entry(name: str, before: NodePlan) -> NodePlan:
        if before.precision not in FLOATS:
            return before
        if name in halves:
            return before.model_copy(update={"precision": half})
        why = reasons.get(name, "")
        texts = [text for text in (before.reason, f"fp32: {why}" if why else "") if text]
        return before.model_copy(update={"reason": "; ".join(texts) or "computes with no floats"})

    return plan.model_copy(update={"nodes": {n: entry(n, e) for n, e in plan.nodes.items()}})
