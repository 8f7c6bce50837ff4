"""Engines with and without LLM.int8(), made as a build makes them, with nothing kept in float."""

from dataclasses import dataclass, field

import onnx_ir as ir

from qcompile.calibrate.collect import collect
from qcompile.graph.protocol import Fact
from qcompile.graph.runner import run_passes
from qcompile.passes.divide_rows import DivideRows
from qcompile.passes.dynamic_matmul import DynamicMatmul
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.split_outliers import SplitOutliers
from qcompile.planning.outliers import float_nodes, outlier_channels, outlier_layers
from qcompile.planning.plan import Planner, activations_of, assemble
from qcompile.planning.select import select
from qcompile.planning.wishes import Wishes
from qcompile.progress import Silent
from qcompile.recipe import Recipe, Scheme
from qcompile.remedies import Remedies
from qcompile.samples import InMemory
from qcompile.statistics import Statistics
from qcompile.targets.ort_cpu import ORT_CPU


@dataclass(frozen=True)
class Float:
    """A lowered float graph, split or not.

    Attributes:
        model: The graph.
        holds: What holds of it.
        remedies: What was done to it.
    """

    model: ir.Model
    holds: frozenset[Fact]
    remedies: Remedies = field(default_factory=Remedies)

    @property
    def share(self) -> float:
        """Of all multiply-adds, those of outliers that are known."""
        return sum(layer.of_model or 0 for layer in outlier_layers(self.model, self.remedies))


def split(
    source: Float,
    scheme: Scheme,
    samples: InMemory,
    *,
    share: float | None = None,
    run_time: bool = False,
) -> Float:
    """Split all layers that would compute on codes, by threshold 6 or a share of columns."""
    nodes = select(source.model, ORT_CPU, scheme, Wishes()).nodes.items()
    chosen = [name for name, entry in nodes if entry.precision == scheme]
    options = {"threshold": 6.0, "share": share, "run_time": run_time}
    found = outlier_channels(source.model, chosen, samples, 2, Silent(), **options)
    remedies = Remedies(outliers=found)
    model = source.model.clone()
    run_passes(model, [SplitOutliers(remedies=remedies)], holds=source.holds)
    return Float(model, source.holds, remedies)


def engine(source: Float, scheme: Scheme, samples: InMemory, *, by_rows: bool = False) -> ir.Model:
    """Quantize; scheme int8-dynamic ignores the samples, and no other scheme knows ``by_rows``."""
    wishes = Wishes(nodes=float_nodes(source.model, source.remedies))
    if scheme == "int8-dynamic":
        chosen = select(source.model, ORT_CPU, scheme, wishes)
        plan = assemble(source.model, chosen, ORT_CPU, "vnni", scheme, {})
        steps = [DynamicMatmul(plan=plan)]
        steps = [DivideRows(plan=plan), *steps] if by_rows else steps
    else:
        recipe, types = Recipe(keep_accuracy=False), ORT_CPU.types("int8", "vnni")
        about = recipe, ORT_CPU, "vnni", types, Silent()
        chosen = Planner(source.model, Statistics({}, 0), None, *about).selected(wishes)
        names = activations_of(chosen)
        seen = collect(source.model, samples, names, jobs=2, histograms=True, progress=Silent())
        plan, codes = Planner(source.model, seen, samples, *about).make(wishes)
        steps = [InsertQdq(plan=plan, codes=codes), FenceFloatNodes()]
    model = source.model.clone()
    run_passes(model, steps, holds=source.holds)
    return model
