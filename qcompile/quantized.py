"""What a scheme makes of a loaded model: the rewritten graph, its plan, and what was measured."""

from dataclasses import dataclass, field

import onnx_ir as ir

from qcompile.compare.layers import LayerError
from qcompile.graph.runner import PassRun
from qcompile.plan import Plan
from qcompile.planning.given import Kept
from qcompile.report.schema import CalibrationSummary
from qcompile.report.schema_budget import BudgetSection
from qcompile.report.schema_results import WeightRow


@dataclass(frozen=True)
class Quantized:
    """A quantized model, before it is written.

    Attributes:
        model: The rewritten graph.
        plan: What was decided.
        runs: What the passes did.
        weights: Error of each weight's own values.
        solved: For weights in few bits: errors at the layers' outputs, by algorithm.
        calibration: How ranges were found, where there are any.
        budget: What ``--max-drop`` keeps in float.
        kept: What became of the grids of a source that is quantized already.
        stand_in: A graph with the same numbers, where ONNX Runtime on CPU cannot run ``model``.
    """

    model: ir.Model
    plan: Plan
    runs: list[PassRun]
    weights: list[LayerError] = field(default_factory=list)
    solved: tuple[WeightRow, ...] = ()
    calibration: CalibrationSummary | None = None
    budget: BudgetSection | None = None
    kept: Kept | None = None
    stand_in: ir.Model | None = None

    @property
    def runnable(self) -> ir.Model:
        """The graph that ONNX Runtime on CPU can run."""
        return self.stand_in or self.model
