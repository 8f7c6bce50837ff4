"""From a trained model to a QDQ ONNX file, and to what torchao makes of it."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from qcompile.emit.ort_file import write_engine
from qcompile.errors import ModelError
from qcompile.graph.digest import model_digest
from qcompile.graph.runner import run_passes
from qcompile.graph.walk import is_op
from qcompile.numerics.grids import Codes, quantize
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.plan import Plan, TensorPlan
from qcompile.planning.forms import value_name
from qcompile.planning.select import Selection
from qcompile.planning.tensors import (
    BIAS_LIMIT,
    bias_plan,
    constant_plan,
    input_name,
    values_of,
    weight_plan,
)
from qcompile.progress import Silent
from qcompile.qat import batch_norm
from qcompile.qat.exported import Lowered, lower
from qcompile.qat.fake_quant import FakeQuant
from qcompile.qat.libraries import quiet
from qcompile.qat.plan import select_nodes
from qcompile.qat.trainable import Trainable
from qcompile.targets.target import Placement


def convert(model: Trainable, path: Path | str) -> Path:
    """Write a trained model as QDQ ONNX, which ``qcompile build`` takes as it is.

    Q and DQ stand where a build from the float model would place them; weights are stored as codes.

    Args:
        model: As ``prepare`` gave it, trained; it is not changed.
        path: The ``.onnx`` file; a file of that name is replaced.

    Returns:
        The path.

    Raises:
        ModelError: A tensor of the model is not finite.
        OutputError: The disk refuses.
    """
    path = Path(path)
    lowered = _trained_graph(model)
    goal = model.blueprint.goal
    selection = select_nodes(goal, lowered.model, Silent())
    if tuple(selection.activations) != model.blueprint.activations:
        raise ModelError("the trained module exports to another graph than the one prepared")
    writer = _Planner(model, lowered, selection)
    plan = writer.plan()
    hand_on = goal.target.placement is Placement.ISLANDS
    insert = InsertQdq(plan=plan, codes=writer.codes, hand_on=hand_on)
    run_passes(lowered.model, [insert], holds=lowered.holds)
    few = {name for name, grid in model.blueprint.grids.items() if _is_narrow(grid.codes)}
    _narrow_codes(lowered.model, few)
    with tempfile.TemporaryDirectory(dir=path.resolve().parent) as folder:
        written = Path(folder) / path.name
        write_engine(lowered.model, written)
        for file in sorted(Path(folder).iterdir(), key=lambda f: f.name, reverse=True):
            file.replace(path.parent / file.name)
    return path


def converted(model: Trainable) -> GraphModule:
    """Return what torchao makes of a trained model: Q and DQ as torch operators.

    Args:
        model: As ``prepare`` gave it, trained; it is not changed.
    """
    _refresh_scales(model)
    with quiet():
        graph = copy.deepcopy(model.graph)
        batch_norm.set_training(graph, norms=False, dropouts=False)
        batch_norm.fold(graph)
        return convert_pt2e(graph)


def _refresh_scales(model: Trainable) -> None:
    """Let the scales that follow weights catch up with the last step of the optimizer."""
    inputs = model.blueprint.program.example_inputs
    assert inputs is not None  # noqa: S101 - torch.export keeps them
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    training = model.training
    with torch.no_grad():
        model.eval()(*(value.to(device) for value in inputs[0]))
    model.train(training)


def _trained_graph(model: Trainable) -> Lowered:
    """Return the graph of the float module with the trained tensors in it."""
    _refresh_scales(model)
    trained = model.graph.state_dict()
    program, goal = model.blueprint.program, model.blueprint.goal
    with torch.no_grad():
        for name, tensor in program.state_dict.items():
            if name not in trained:  # counts batches: nothing reads it
                continue
            if not torch.isfinite(trained[name]).all():
                raise ModelError(f"{name} is not finite: training diverged")
            tensor.copy_(trained[name])
    return lower(program, goal.target.name, goal.recipe.scheme)


class _Planner:
    """Puts trained scales together as a plan.

    Attributes:
        codes: Of the weights that were trained.
    """

    def __init__(self, model: Trainable, lowered: Lowered, selection: Selection) -> None:
        self.trained, self.blueprint = model.fake_quants(), model.blueprint
        self.types = model.blueprint.goal.types
        self.model, self.selection = lowered.model, selection
        self.nodes = {str(node.name): node for node in lowered.model.graph}
        self.codes: dict[str, Codes] = {}
        self.tensors: dict[str, TensorPlan] = {}

    def plan(self) -> Plan:
        for name in self.selection.activations:
            self.tensors[name] = self._activation(name)
        readers = {input_name(node, 1): node for node in self._weighted()}
        for name, axis in self.selection.weights.items():
            self.tensors[name] = self._weight(name, axis, readers.get(name))
        for name, owner in self.selection.biases.items():
            data, weight = (self.tensors[input_name(self.nodes[owner], i)] for i in (0, 1))
            self.tensors[name] = bias_plan(data, weight)
        goal = self.blueprint.goal
        return Plan(
            model=model_digest(self.model),
            target=goal.target.name,
            device=goal.device,
            scheme=goal.recipe.scheme,
            tensors=self.tensors,
            nodes=self.selection.nodes,
        )

    def _weighted(self) -> Iterator[ir.Node]:
        for node in self.model.graph:
            if self.selection.is_int8(node) and len(node.inputs) > 1 and node.inputs[1]:
                yield node

    def _activation(self, name: str) -> TensorPlan:
        source = self.selection.tied.get(name, name)
        module = self.trained.get(source)
        grid = self.blueprint.grids[source]
        scale, zero_point = [grid.scale], [grid.zero_point]
        if module is not None:
            scale, zero_point = _grid(module)
        return TensorPlan(
            kind="activation", type=self.types.activation, scale=scale, zero_point=zero_point
        )

    def _weight(self, name: str, axis: int | None, node: ir.Node | None) -> TensorPlan:
        values = values_of(self.model, name)
        if axis is None:
            return constant_plan(values, self.types)
        module = self.trained.get(str(node.name)) if node is not None else None
        if module is None or node is None:
            return weight_plan(values, axis, self.types)
        scale, _ = _grid(module)
        tensor = TensorPlan(
            kind="weight",
            type=self.types.weight,
            axis=axis,
            scale=[float(s) for s in self._wide_enough(np.asarray(scale), node)],
            zero_point=[0] * len(scale),
            reduce_range=self.types.reduce_range,
        )
        grid = tensor.scales(), tensor.zero_points(), axis
        codes = quantize(values, *grid, self.types.weight)
        self.codes[name] = codes.clip(module.quant_min, module.quant_max)
        return tensor

    def _wide_enough(self, scale: np.ndarray, node: ir.Node) -> np.ndarray:
        """Return the scales, larger where weights are so tiny that the bias would leave int32."""
        bias = value_name(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else ""
        if self.selection.biases.get(bias) != node.name:
            return scale
        data = self.tensors[input_name(node, 0)].scale[0]
        least = np.abs(values_of(self.model, bias).astype(np.float64)) / BIAS_LIMIT / data
        return np.maximum(scale, least.reshape(-1)).astype(np.float32)


def _grid(module: FakeQuant) -> tuple[list[float], list[int]]:
    scale, zero_point = module.calculate_qparams()
    return scale.cpu().tolist(), zero_point.cpu().tolist()


def _is_narrow(codes: tuple[int, int]) -> bool:
    return codes[1] - codes[0] < 16


def _narrow_codes(model: ir.Model, names: set[str]) -> None:
    """Store the codes of activations in 4 bits: Q saturates at the ends of its type alone."""
    for node in model.graph:
        source = value_name(node.inputs[0]) if is_op(node, "QuantizeLinear") else ""
        if source not in names and source.removesuffix(".raw") not in names:
            continue
        zero_point = node.inputs[2]
        assert zero_point is not None and zero_point.const_value is not None  # noqa: PT018, S101
        old = zero_point.const_value.numpy()
        kind = ml_dtypes.uint4 if old.dtype == np.uint8 else ml_dtypes.int4
        zero_point.const_value = ir.tensor(old.astype(kind), name=zero_point.name)
        for value in (zero_point, node.outputs[0]):
            value.type = ir.TensorType(zero_point.const_value.dtype)
