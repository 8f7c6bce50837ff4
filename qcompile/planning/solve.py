"""Codes of layers with one input: plain rounding, GPTQ, AWQ, AdaRound, judged on held-back rows.

The error of a layer is that of its output, ``|x W^T - x W'^T| / |x W^T|``, over inputs that the
solution did not see. They come from the model with all earlier weights in few bits already, so a
layer is judged, and solved, on what it will read. Where weights make up for what earlier layers
lost (``numerics.compensation``), the weights so moved are what is rounded, and W in the above.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from qcompile.numerics.adaround import Schedule, learn_weight
from qcompile.numerics.awq import Rounding, harmless_scale, input_scale, round_clipped
from qcompile.numerics.compensation import Compensation
from qcompile.numerics.descent import settle
from qcompile.numerics.gptq import InverseHessian, prepare, solve_prepared
from qcompile.numerics.grouped import solve_grouped
from qcompile.numerics.groups import Floats, SolvedWeight, WeightFormat, round_nearest
from qcompile.numerics.hessian import output_error, output_error_on
from qcompile.plan import Algorithm
from qcompile.planning.layer_inputs import LayerInputs
from qcompile.recipe import Accuracy, Weights
from qcompile.remedies import Learned

NARROW = 64
"""Columns of a group that GPTQ solves as a whole: of a wider one the order of columns counts more
than a scale that is clipped when the group's turn comes."""


BY_DEFAULT = Learned(steps=Accuracy().steps, seed=Accuracy().seed)
"""How AdaRound learns where nobody says."""


@dataclass(frozen=True)
class Candidate:
    """One weight, solved by one algorithm.

    Attributes:
        algorithm: Which.
        solved: The codes.
        error: Squared error at the output, on the judging rows.
    """

    algorithm: Algorithm
    solved: SolvedWeight
    error: float


@dataclass(frozen=True)
class Inherited:
    """What the codes of earlier layers cost at a layer's output, on the judging rows.

    Attributes:
        error: Relative L2 error of the weight as it is.
        left: That of the weight that is rounded in its place.
    """

    error: float
    left: float


@dataclass(frozen=True)
class Outcome:
    """What was chosen for one weight.

    Attributes:
        chosen: The algorithm and its codes.
        errors: Relative L2 error at the output by algorithm; rtn is always there.
        inherited: Of earlier layers, where that was to be compensated.
    """

    chosen: Candidate
    errors: dict[Algorithm, float] = field(default_factory=dict)
    inherited: Inherited | None = None


def solve_layers(
    weights: Sequence[Floats],
    inputs: LayerInputs,
    options: Weights,
    scale_type: str,
    *,
    signed: bool = True,
    learned: Learned = BY_DEFAULT,
) -> tuple[list[Outcome], float]:
    """Solve the weights that read one input.

    The chosen algorithm is the asked-for one, and plain rounding where that has the smaller error;
    ``auto`` takes the least of all. Weights with a common input share AWQ's scale of it, so there
    the sum of their errors decides.

    Args:
        weights: One ``(R, K)`` for each layer, any floating type.
        inputs: What the layers read; its sums for compensation are taken out.
        options: Format and algorithm.
        scale_type: float32 or float16.
        signed: Scales of symmetric grids may be negative.
        learned: How AdaRound learns.

    Returns:
        One outcome for each weight, and the damping that the Hessian took (0 without GPTQ).

    Raises:
        RuntimeMissingError: AdaRound is asked for, and torch is not installed.
        DataError: The inputs are not finite.
    """
    form = _format(options, scale_type, signed=signed)
    inherited = _compensate(weights, inputs) if inputs.lost is not None else None
    if inherited:
        weights = [weight for weight, _ in inherited]
    solver = _Solver(form, options, inputs.hessian.matrix(), inputs.magnitude(), learned)
    judge = _Judge(weights, inputs.rows()[1])
    families = [
        judge.candidates([(name, solver.solve(weights, name)) for name in names])
        for names in _families(options)
    ]
    totals = [sum(c.error for c in best) for best in map(_best, families)]
    chosen = _best(families[int(np.argmin(totals))])
    tried = [[c for family in families for c in family[i]] for i in range(len(weights))]
    outcomes = [
        Outcome(
            candidate,
            {c.algorithm: judge.relative(i, c) for c in tried[i]},
            inherited[i][1] if inherited else None,
        )
        for i, candidate in enumerate(chosen)
    ]
    return outcomes, solver.damping


def _compensate(weights: Sequence[Floats], inputs: LayerInputs) -> list[tuple[Floats, Inherited]]:
    """Return the weights to round: those that make up for earlier layers, where they really do."""
    rows, exact = inputs.rows()[1], inputs.exact()
    lost, inputs.lost = inputs.lost, None  # it is as large as the Hessian
    if lost is None or not lost.matrix.any():
        return [(weight, Inherited(0.0, 0.0)) for weight in weights]
    found = []
    compensation = Compensation(inputs.hessian.matrix(), lost.matrix)
    both = np.concatenate([rows, exact], axis=1)
    for weight in weights:
        moved = compensation.of(weight)
        power = output_error_on(weight, exact)
        error, left = (
            output_error_on(np.concatenate([one, -weight], axis=1), both) for one in (weight, moved)
        )
        kept = moved if left < error else weight
        scale = 1 / power if power else 0.0
        share = Inherited(*(float(np.sqrt(scale * x)) for x in (error, min(left, error))))
        found.append((kept, share))
    return found


def round_layer(
    weight: Floats, options: Weights, scale_type: str, *, signed: bool = True
) -> SolvedWeight:
    """Round one weight ``(R, K)`` without any data."""
    form = _format(options, scale_type, signed=signed)
    return round_nearest(weight, form, search=options.search)


def _format(options: Weights, scale_type: str, *, signed: bool) -> WeightFormat:
    symmetric = not options.asymmetric
    return WeightFormat(options.bits, options.group_size, symmetric, scale_type, signed)


def _families(options: Weights) -> list[tuple[Algorithm, ...]]:
    """Return the algorithms to try; those of one family leave the inputs in one basis."""
    asked = options.algorithm
    tried: tuple[Algorithm, ...] = ("gptq", "awq", "awq+gptq") if asked == "auto" else (asked,)
    unscaled = [name for name in tried if name in ("gptq", "adaround")]
    scaled = [name for name in tried if name in ("awq", "awq+gptq")]
    return [("rtn", *unscaled), *((name,) for name in scaled)]


def _best(family: list[list[Candidate]]) -> list[Candidate]:
    """Return the candidate with the least error of each weight."""
    return [min(found, key=lambda c: c.error) for found in family]


class _Judge:
    """Measures solved weights at their outputs."""

    def __init__(self, weights: Sequence[Floats], rows: Floats) -> None:
        self.weights, self.rows = weights, rows
        self.power = [output_error_on(weight, rows) for weight in weights]

    def candidates(
        self, solved: Sequence[tuple[Algorithm, Sequence[SolvedWeight]]]
    ) -> list[list[Candidate]]:
        """Return the candidates of each weight."""
        return [
            [
                Candidate(name, found[i], output_error_on(weight - found[i].values(), self.rows))
                for name, found in solved
            ]
            for i, weight in enumerate(self.weights)
        ]

    def relative(self, index: int, candidate: Candidate) -> float:
        """Return the relative L2 error of a candidate of one weight."""
        power = self.power[index]
        return float(np.sqrt(candidate.error / power)) if power else 0.0


class _Solver:
    """Solves weights with one input by any algorithm."""

    def __init__(
        self,
        form: WeightFormat,
        options: Weights,
        hessian: npt.NDArray[np.float64],
        magnitude: Floats,
        learned: Learned,
    ) -> None:
        self.form, self.options, self.learned = form, options, learned
        self.hessian, self.magnitude = hessian, magnitude
        self.damping = 0.0  # what the Hessian took to be inverted, 0 where it was not
        self._last: tuple[int, InverseHessian] | None = None

    def solve(self, weights: Sequence[Floats], algorithm: Algorithm) -> list[SolvedWeight]:
        """Return the weights ``(R, K)`` as one algorithm rounds them."""
        search = self.options.search
        if algorithm == "rtn":
            return [round_nearest(w, self.form, search=search) for w in weights]
        if algorithm == "gptq":
            return [self._by_columns(weight) for weight in weights]
        if algorithm == "adaround":
            return [self._learned(weight) for weight in weights]
        if algorithm == "awq":
            return self._scaled(weights)
        # one after another: each has its own inverse, and they are the largest there is
        ways = (self._grouped,) if self._narrow() else (self._act_ordered, self._grouped)
        both = (self._combined(weights, make()) for make in ways)
        return min(both, key=lambda solved: self._error(weights, solved))

    def _narrow(self) -> bool:
        return self.form.width(len(self.magnitude)) <= NARROW

    def _by_columns(self, weight: Floats) -> SolvedWeight:
        """Return GPTQ's codes of a weight ``(R, K)`` as it is."""
        form, static, search = self.form, self.options.static_groups, self.options.search
        if static is None and self._narrow():
            return solve_grouped(weight, self._inverse(form.group_size), form, search=search)
        inverse = self._inverse(0)
        return solve_prepared(
            weight, inverse, form, static_groups=static is not False, search=search
        )

    def _learned(self, weight: Floats) -> SolvedWeight:
        """Return AdaRound's codes, on the grids of plain rounding; settled, as none moves alone."""
        options = self.options
        start = round_nearest(weight, self.form, search=options.search)
        schedule = Schedule(self.learned.steps, self.learned.seed, batch=1)
        found = learn_weight(weight, start, self.hessian, schedule)
        return settle(weight, found, self.hessian, damping=options.damping)

    def _scaled(self, weights: Sequence[Floats]) -> list[SolvedWeight]:
        """Search the scale of the inputs and the ranges of groups; round with the best."""
        size, rounding = self.form.group_size, self._clipped
        scale = input_scale(weights, self.hessian, self.magnitude, size, rounding)
        return self._with_scale(weights, scale, rounding)

    def _combined(self, weights: Sequence[Floats], rounding: Rounding) -> list[SolvedWeight]:
        """Search the scale under GPTQ's own error; settle the codes that GPTQ finds with it."""
        scale = harmless_scale(weights, self.hessian, self.magnitude, rounding)
        solved = self._with_scale(weights, scale, rounding)
        return [
            settle(w, found, self.hessian, damping=self.damping)
            for w, found in zip(weights, solved, strict=True)
        ]

    def _with_scale(
        self,
        weights: Sequence[Floats],
        scale: npt.NDArray[np.float32] | None,
        rounding: Rounding,
    ) -> list[SolvedWeight]:
        basis = np.ones(len(self.magnitude), np.float32) if scale is None else scale
        return [replace(rounding(w, basis), input_scale=scale) for w in weights]

    def _error(self, weights: Sequence[Floats], solved: Sequence[SolvedWeight]) -> float:
        return sum(
            output_error(w - found.values(), self.hessian)
            for w, found in zip(weights, solved, strict=True)
        )

    def _inverse(self, group_size: int) -> InverseHessian:
        """Invert the Hessian for rounding in act-order, groups of columns kept together.

        The last inverse is kept, for whoever asks for the same next.
        """
        if self._last is None or self._last[0] != group_size:
            self._last = None  # two of them would be too much memory
            options = self.options
            inverse = prepare(
                self.hessian,
                damping=options.damping,
                act_order=options.act_order,
                group_size=group_size,
            )
            self._last = group_size, inverse
            self.damping = max(self.damping, inverse.damping)
        return self._last[1]

    def _grouped(self) -> Rounding:
        """Return GPTQ a group after another, each clipped in its turn."""
        inverse = self._inverse(self.form.group_size)
        return lambda weight, scale: solve_grouped(
            weight, inverse, self.form, scale, search=self.options.search
        )

    def _act_ordered(self) -> Rounding:
        """Return GPTQ on grids fixed before: better where inputs differ most within groups."""
        inverse = self._inverse(0)
        return lambda weight, scale: solve_prepared(
            weight,
            inverse,
            self.form,
            search=self.options.search,
            input_scale=scale,
        )

    def _clipped(self, weight: Floats, scale: npt.NDArray[np.float32]) -> SolvedWeight:
        if self.options.search:
            return round_clipped(weight, self.hessian, scale, self.form)
        scaled = np.multiply(weight, scale, dtype=np.float64)
        return replace(round_nearest(scaled, self.form), input_scale=scale)
