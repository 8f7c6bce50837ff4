"""The drop: how much worse a model is than its float model, in the unit of its score.

What gate ``max-drop`` judges: the metric, else the top-1 accuracy that falls most. Where samples
have no labels, the share of decisions that differ stands for it: no accuracy falls by more.
"""

import math

from qcompile.compare.gates import check_gates
from qcompile.compare.results import Comparison
from qcompile.frozen import Frozen
from qcompile.numerics.intervals import Interval
from qcompile.recipe import Gates

DISAGREEMENT = "top-1 decisions that differ"


class Drop(Frozen):
    """A measured drop.

    Attributes:
        score: What fell, or rose where lower is better.
        value: In the score's own unit; None where rounding makes the score undefined.
        interval: 95 % interval, paired over samples; None where samples are too few for one.
        samples: That it was measured on.
        note: The scores, or what they are instead.
    """

    score: str
    value: float | None
    interval: Interval | None = None
    samples: int
    note: str = ""

    @property
    def size(self) -> float:
        """The value; infinite where it is undefined."""
        return math.inf if self.value is None else self.value


def measured_drop(comparison: Comparison) -> Drop | None:
    """Return the drop, or None where nothing scores the float model."""
    judged = [s for s in comparison.scores if not s.output] or [
        s for s in comparison.scores if s.name.startswith("top-1")
    ]
    if any(score.float_value is None for score in judged):
        return None
    gate = check_gates(Gates(max_drop=0), comparison, None)[0]
    if not judged and gate.measured is None:
        return None
    return Drop(
        score=judged[0].name if judged else DISAGREEMENT,
        value=gate.measured,
        interval=gate.interval,
        samples=comparison.samples,
        note=gate.note,
    )
