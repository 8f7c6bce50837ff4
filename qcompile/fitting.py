"""The last passes before a graph is written: what the device's runtime demands of any graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qcompile.data import Split
from qcompile.errors import RecipeError
from qcompile.frontend import Loaded
from qcompile.graph.protocol import GraphPass
from qcompile.graph.runner import run_passes
from qcompile.graph.walk import all_graphs
from qcompile.passes.convert_opset import ConvertOpset
from qcompile.passes.fold_constants import FoldConstants
from qcompile.passes.infer_shapes import InferShapes
from qcompile.passes.lower_opset import LowerOpset
from qcompile.passes.name_values import NameValues
from qcompile.profiles import profiles_of
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Recipe
from qcompile.targets.target import Target

Sizes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Fitting:
    """Sizes and opset of one build.

    Attributes:
        loaded: The float model.
        data: Its samples have the sizes, unless the recipe says them.
        recipe: What was asked for.
        target: What the engine runs on; it has the opset.
        device: The kind of it.
        log: Hears what was fixed, and which operators demand a newer opset.
    """

    loaded: Loaded
    data: Split
    recipe: Recipe
    target: Target
    device: str
    log: StageLog

    def fit(self, made: Quantized, dump_passes: Path | None) -> Quantized:
        """Fix open sizes for devices that want them known; lower the opset to the target's.

        Args:
            made: The rewritten graph, which is changed in place.
            dump_passes: Folder for the graph's text after each pass.

        Raises:
            RecipeError: ``--shapes`` does not fit the model.
        """
        passes: list[GraphPass] = []
        device = self.target.devices.get(self.device)
        if device is not None and device.fixed_sizes and (sizes := self._sizes()):
            fix_sizes(made.model, sizes)
            passes += [InferShapes(), FoldConstants(), NameValues(), InferShapes()]
        lower = LowerOpset(opset=self.target.opset)
        if self.target.opset < ConvertOpset().opset:
            passes.append(lower)
        folder = dump_passes / "fit" if dump_passes else None
        runs = run_passes(made.model, passes, holds=self.loaded.holds, dump_dir=folder)
        opset = made.model.opset_imports[""]
        if lower in passes and self.target.opset < opset:
            self.log.notice(f"the model is of opset {opset}, since {'; '.join(lower.refusals)}")
        return replace(made, runs=[*made.runs, *runs])

    def _sizes(self) -> Sizes:
        """Return the shape of each input with open sizes; nothing where nobody knows, or it varies.

        Raises:
            RecipeError: ``--shapes`` does not fit the model, or gives a range.
        """
        shapes = self.recipe.tensorrt.shapes
        if shapes is None and self.data.calibration is None and self.data.evaluation is None:
            self.log.notice("without samples, open sizes of inputs stay open; give --shapes")
            return {}
        profiles = profiles_of(shapes, self.loaded, self.data, self.log)
        varied = ", ".join(n for n, profile in profiles.items() if profile.min != profile.max)
        if varied and shapes is not None:
            raise RecipeError(f"--shapes: {self.device} takes one shape of {varied}, not a range")
        if varied:
            self.log.notice(
                f"{self.device} wants one shape of {varied}, and the samples have several: sizes "
                "are left open, and much of the graph will run on the CPU; give --shapes"
            )
            return {}
        return {name: profile.opt for name, profile in profiles.items()}


def fix_sizes(model: ir.Model, sizes: Sizes) -> None:
    """Give inputs their shapes, and their named sizes to all values that have these, too.

    Shapes of outputs with other sizes that are open become unknown: they are inferred anew.

    Args:
        model: Changed in place.
        sizes: Name of an input to its shape.
    """
    known: dict[str | None, int] = {}
    for value in model.graph.inputs:
        shape = sizes.get(value.name or "")
        if shape is not None:
            named = zip(value.shape or (), shape, strict=False)
            known |= {dim.value: n for dim, n in named if isinstance(dim, ir.SymbolicDim)}
            value.shape = ir.Shape(shape)
    known.pop(None, None)
    for graph in all_graphs(model):
        for value in (out for node in graph for out in node.outputs):
            if value.shape is not None:
                value.shape = ir.Shape([_size(dim, known) for dim in value.shape])
    for value in model.graph.outputs:
        if value.shape is not None and not all(isinstance(dim, int) for dim in value.shape):
            value.shape = None


def _size(dim: int | ir.SymbolicDim, known: Mapping[str | None, int]) -> int | ir.SymbolicDim:
    return known.get(dim.value, dim) if isinstance(dim, ir.SymbolicDim) else dim
