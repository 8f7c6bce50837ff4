"""The section of a report on the accuracy budget: which layers ``--max-drop`` keeps in float."""

from qcompile.report.section import Interval, Number, Section


class DropRow(Section):
    """A drop of the score against the float model, on calibration samples.

    Attributes:
        value: In the score's own unit; None where rounding makes it undefined.
        interval: 95 %, paired over samples.
    """

    value: Number = None
    interval: Interval | None = None


class BudgetLayer(Section):
    """A layer that is kept in float.

    Attributes:
        share: Of the model's multiply-adds.
    """

    name: str
    op: str
    share: Number = None


class BudgetSection(Section):
    """What the budget came to.

    Attributes:
        limit: ``--max-drop``.
        score: What drops; empty where nothing scores the model.
        note: What the score stands for, or why nothing was done.
        samples: Of the calibration data, that drops were measured on.
        before: Of the plan as it would be without the budget.
        after: Of the plan as it is; None where it is the same.
        layers: Kept in float, the most sensitive first.
        share: Of the multiply-adds that are in float because of it, fallen neighbours included.
        plans: Whole models that were measured.
    """

    limit: float
    score: str = ""
    note: str = ""
    samples: int = 0
    before: DropRow = DropRow()
    after: DropRow | None = None
    layers: tuple[BudgetLayer, ...] = ()
    share: Number = None
    plans: int = 0
