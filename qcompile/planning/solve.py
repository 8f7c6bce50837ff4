"""Codes of layers with one input: plain rounding, GPTQ, AWQ or both, judged on held-back rows.

The error of a layer is that of its output, ``|x W^T - x W'^T| / |x W^T|``, over inputs that the
solution did not see. They come from the model with all earlier weights in few bits already, so a
layer is judged, and solved, on what it will read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from qcompile.numerics.awq import Rounding, clipped_parameters, input_scale
from qcompile.numerics.gptq import (
    HessianSum,
    InverseHessian,
    output_error_on,
    prepare,
    solve_prepared,
)
from qcompile.numerics.groups import Floats, SolvedWeight, WeightFormat, round_nearest, round_to
from qcompile.numerics.patches import spread
from qcompile.plan import Algorithm
from qcompile.recipe import Weights

SEARCHED = 512
"""Rows on which AWQ searches its scale."""

JUDGES = 6
"""One sample in so many judges, if there are so many."""

JUDGING = 1024
"""Rows that judge."""

STEPS_OF_SWEEPS = 5
"""Exponents of AWQ's scale that are tried with GPTQ."""


class LayerInputs:
    """What is kept of the inputs that layers share: bounded, whatever the number of samples."""

    def __init__(self, columns: int, samples: int) -> None:
        """Begin.

        Args:
            columns: K.
            samples: How many will be added.
        """
        self.hessian = HessianSum(columns)
        self.judging: list[Floats] = []
        self.searched: list[Floats] = []
        self._magnitude = np.zeros(columns)
        self._judges = samples // JUDGES
        self._fits = samples - self._judges

    def add(self, index: int, rows: Floats) -> None:
        """Add the rows ``(n, K)`` of one sample; one sample in ``JUDGES`` judges."""
        if index % JUDGES == JUDGES - 1:
            if len(self.judging) < JUDGING:
                self.judging.append(_some(rows, JUDGING // max(1, self._judges)))
            return
        self.hessian.add(rows)
        self._magnitude += np.abs(rows).sum(axis=0, dtype=np.float64)
        if len(self.searched) < SEARCHED:
            self.searched.append(_some(rows, SEARCHED // self._fits))

    def magnitude(self) -> npt.NDArray[np.float64]:
        """Return the mean magnitude of each column, ``(K,)``."""
        found: npt.NDArray[np.float64] = self._magnitude / max(1, self.hessian.count)
        return found

    def rows(self) -> tuple[Floats, Floats]:
        """Return rows to search on and rows to judge on; the same where too few samples judge."""
        searched = np.concatenate(self.searched)
        return searched, np.concatenate(self.judging) if self.judging else searched


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
class Outcome:
    """What was chosen for one weight.

    Attributes:
        chosen: The algorithm and its codes.
        errors: Relative L2 error at the output by algorithm; rtn is always there.
    """

    chosen: Candidate
    errors: dict[Algorithm, float] = field(default_factory=dict)


def solve_layers(
    weights: Sequence[Floats], inputs: LayerInputs, options: Weights, scale_type: str
) -> tuple[list[Outcome], float]:
    """Solve the weights that read one input.

    The chosen algorithm is the asked-for one, and plain rounding where that has the smaller error;
    ``auto`` takes the least of all. Weights with a common input share AWQ's scale of it, so there
    the sum of their errors decides.

    Args:
        weights: One ``(R, K)`` for each layer, any floating type.
        inputs: What the layers read.
        options: Format and algorithm.
        scale_type: float32 or float16.

    Returns:
        One outcome for each weight, and the damping that the Hessian took (0 without GPTQ).
    """
    form = _format(options, scale_type)
    searched, judging = inputs.rows()
    solver = _Solver(form, options, inputs.hessian.matrix(), searched, inputs.magnitude())
    judge = _Judge(weights, judging)
    families = [
        judge.candidates([(name, solver.solve(weights, name)) for name in names])
        for names in _families(options)
    ]
    totals = [sum(c.error for c in best) for best in map(_best, families)]
    chosen = _best(families[int(np.argmin(totals))])
    tried = [[c for family in families for c in family[i]] for i in range(len(weights))]
    outcomes = [
        Outcome(candidate, {c.algorithm: judge.relative(i, c) for c in tried[i]})
        for i, candidate in enumerate(chosen)
    ]
    return outcomes, solver.damping


def round_layer(weight: Floats, options: Weights, scale_type: str) -> SolvedWeight:
    """Round one weight ``(R, K)`` without any data."""
    return round_nearest(weight, _format(options, scale_type), search=options.search)


def _format(options: Weights, scale_type: str) -> WeightFormat:
    return WeightFormat(options.bits, options.group_size, not options.asymmetric, scale_type)


def _families(options: Weights) -> list[tuple[Algorithm, ...]]:
    """Return the algorithms to try; those of one family leave the inputs in one basis."""
    asked = options.algorithm
    unscaled: tuple[Algorithm, ...] = ("rtn", "gptq") if asked in ("auto", "gptq") else ("rtn",)
    scaled: tuple[Algorithm, ...] = ("awq", "awq+gptq")
    return [unscaled, *((name,) for name in scaled if asked in ("auto", name))]


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
        rows: Floats,
        magnitude: Floats,
    ) -> None:
        self.form, self.options, self.hessian = form, options, hessian
        self.rows, self.magnitude = rows, magnitude
        self._inverse: InverseHessian | None = None

    @property
    def damping(self) -> float:
        """What the Hessian took to be inverted, 0 where it was not."""
        return self._inverse.damping if self._inverse else 0.0

    def solve(self, weights: Sequence[Floats], algorithm: Algorithm) -> list[SolvedWeight]:
        """Return the weights ``(R, K)`` as one algorithm rounds them."""
        if algorithm == "rtn":
            return [round_nearest(w, self.form, search=self.options.search) for w in weights]
        if algorithm == "gptq":
            return [self._swept(np.asarray(w, np.float64), self.inverse) for w in weights]
        if algorithm == "awq":
            scale = input_scale(weights, self.rows, self.magnitude, self._nearest)
            return [self._scaled(w, scale, self._clipped) for w in weights]
        scale = input_scale(
            weights,
            self.rows,
            self.magnitude,
            lambda w, s: self._swept(w, self.inverse.scaled(s)),
            STEPS_OF_SWEEPS,
        )
        inverse = self.inverse if scale is None else self.inverse.scaled(scale)
        return [self._scaled(w, scale, lambda x, _: self._swept(x, inverse)) for w in weights]

    @property
    def inverse(self) -> InverseHessian:
        """The inverse Hessian, made when it is first needed."""
        if self._inverse is None:
            options = self.options
            self._inverse = prepare(
                self.hessian, damping=options.damping, act_order=options.act_order
            )
        return self._inverse

    def _scaled(
        self, weight: Floats, scale: npt.NDArray[np.float32] | None, rounding: Rounding
    ) -> SolvedWeight:
        """Return a weight rounded in the basis of an input scale."""
        basis = np.ones(weight.shape[1], np.float32) if scale is None else scale
        return replace(
            rounding(np.multiply(weight, basis, dtype=np.float64), basis), input_scale=scale
        )

    def _nearest(self, weight: Floats, scale: Floats) -> SolvedWeight:
        power = np.diag(self.hessian) / np.square(scale)
        return round_nearest(weight, self.form, search=self.options.search, importance=power)

    def _clipped(self, weight: Floats, scale: Floats) -> SolvedWeight:
        if not self.options.search:
            return round_nearest(weight, self.form)
        grids = clipped_parameters(weight, self.hessian, scale, self.form)
        return SolvedWeight(self.form, round_to(weight, self.form, *grids), *grids)

    def _swept(self, weight: Floats, inverse: InverseHessian) -> SolvedWeight:
        options = self.options
        return solve_prepared(
            weight,
            inverse,
            self.form,
            static_groups=options.static_groups,
            search=options.search,
        )


def _some(rows: Floats, limit: int) -> Floats:
    """Return a float32 copy of some rows, at least one, evenly spread."""
    return np.asarray(rows[spread(len(rows), max(1, limit))], np.float32)
