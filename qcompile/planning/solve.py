"""Codes of layers with one input: plain rounding, GPTQ, AWQ or both, judged on held-back rows.

The error of a layer is that of its output, ``|x W^T - x W'^T| / |x W^T|``, over inputs that the
solution did not see. They come from the model with all earlier weights in few bits already, so a
layer is judged, and solved, on what it will read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from qcompile.numerics.awq import clipped_parameters, input_scale
from qcompile.numerics.gptq import HessianSum, InverseHessian, prepare, solve_prepared
from qcompile.numerics.groups import (
    Codes,
    Floats,
    SolvedWeight,
    WeightFormat,
    group_parameters,
    round_nearest,
    round_to,
)
from qcompile.numerics.patches import spread
from qcompile.plan import Algorithm
from qcompile.recipe import Weights

SEARCHED = 512
"""Rows on which AWQ searches its scale."""

JUDGES = 6
"""One sample in so many judges, if there are so many."""

JUDGING = 1024
"""Rows that judge."""

_CHANNELS = 1024


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
            self.judging.append(_some(rows, JUDGING // max(1, self._judges)))
            return
        self.hessian.add(rows)
        self._magnitude += np.abs(rows).sum(axis=0, dtype=np.float64)
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
        inputs: What the layers read; its Hessian is used up.
        options: Format and algorithm.
        scale_type: float32 or float16.

    Returns:
        One outcome for each weight, and the damping that the Hessian took (0 without GPTQ).
    """
    form = WeightFormat(options.bits, options.group_size, not options.asymmetric, scale_type)
    searched, judging = inputs.rows()
    powers = [_power(weight, judging) for weight in weights]
    wanted = _algorithms(options)
    plain = _Solver(form, options, None, inputs.hessian.matrix(), judging)
    families = [[plain.family(weight, wanted) for weight in weights]]
    damping = plain.damping
    del plain  # an inverse is as large as the Hessian
    if wanted & {"awq", "awq+gptq"}:
        scale = input_scale(weights, searched, inputs.magnitude(), form)
        scaled = _Solver(form, options, scale, inputs.hessian.matrix(), judging, awq=True)
        families.append([scaled.family(weight, wanted) for weight in weights])
        damping = max(damping, scaled.damping)
    chosen = _choose(families)
    outcomes = []
    for index, (candidate, power) in enumerate(zip(chosen, powers, strict=True)):
        tried = [c for family in families for c in family[index]]
        errors = {c.algorithm: float(np.sqrt(c.error / power)) if power else 0.0 for c in tried}
        outcomes.append(Outcome(candidate, errors))
    return outcomes, damping


def round_layer(weight: Floats, options: Weights, scale_type: str) -> SolvedWeight:
    """Round one weight ``(R, K)`` without any data."""
    form = WeightFormat(options.bits, options.group_size, not options.asymmetric, scale_type)
    return round_nearest(weight, form, search=options.search)


def _algorithms(options: Weights) -> set[Algorithm]:
    if options.algorithm == "auto":
        return {"rtn", "gptq", "awq", "awq+gptq"}
    return {"rtn", options.algorithm}


def _choose(families: list[list[list[Candidate]]]) -> list[Candidate]:
    """Return one candidate for each weight.

    Args:
        families: For each input scale, for each weight, its candidates.
    """
    best = [[min(found, key=lambda c: c.error) for found in family] for family in families]
    totals = [sum(c.error for c in family) for family in best]
    return best[int(np.argmin(totals))]


class _Solver:
    """Solves weights whose inputs are divided by one scale."""

    def __init__(
        self,
        form: WeightFormat,
        options: Weights,
        scale: npt.NDArray[np.float32] | None,
        hessian: npt.NDArray[np.float64],
        judging: Floats,
        *,
        awq: bool = False,
    ) -> None:
        """Begin; a scale is divided out of the Hessian in place, for it may be a gigabyte."""
        self.form, self.options, self.scale, self.judging = form, options, scale, judging
        self.awq, self.hessian = awq, hessian
        if scale is not None:
            hessian /= scale
            hessian /= scale[:, None]
        self._inverse: InverseHessian | None = None

    @property
    def damping(self) -> float:
        """What the Hessian took to be inverted, 0 where it was not."""
        return self._inverse.damping if self._inverse else 0.0

    def family(self, weight: Floats, wanted: set[Algorithm]) -> list[Candidate]:
        """Return the candidates of one weight; those of AWQ where this is its input scale.

        Args:
            weight: ``(R, K)``.
            wanted: Algorithms.
        """
        wide = np.asarray(weight, np.float64)
        scaled = wide if self.scale is None else wide * self.scale
        found: list[Candidate] = []
        rounded: Algorithm = "awq" if self.awq else "rtn"
        swept: Algorithm = "awq+gptq" if self.awq else "gptq"
        grids = self._grids(scaled)
        if rounded in wanted:
            codes = round_to(scaled, self.form, *grids)
            found.append(self._judged(rounded, SolvedWeight(self.form, codes, *grids), wide))
        if swept in wanted:
            self._inverse = self._inverse or prepare(
                self.hessian, damping=self.options.damping, act_order=self.options.act_order
            )
            solved = solve_prepared(
                scaled,
                self._inverse,
                self.form,
                static_groups=self.options.static_groups,
                search=self.options.search,
            )
            found.append(self._judged(swept, solved, wide))
        return found

    def _grids(self, weight: Floats) -> tuple[Floats, Codes]:
        """Return scales and zero points: clipped for AWQ, by least squared error if asked for."""
        if self.awq and self.options.search:
            return clipped_parameters(weight, self.hessian, self.form)
        return group_parameters(weight, self.form, search=self.options.search)

    def _judged(self, algorithm: Algorithm, solved: SolvedWeight, weight: Floats) -> Candidate:
        """Return a candidate with its squared error at the output."""
        solved = replace(solved, input_scale=self.scale)
        return Candidate(algorithm, solved, _power(weight - solved.values(), self.judging))


def _power(weight: Floats, rows: Floats) -> float:
    """Return ``|rows @ weight.T|^2``, a part of the rows at a time."""
    total = 0.0
    for start in range(0, len(weight), _CHANNELS):
        part = np.asarray(weight[start : start + _CHANNELS], np.float32)
        total += float(np.square(rows @ part.T, dtype=np.float64).sum())
    return total


def _some(rows: Floats, limit: int) -> Floats:
    """Return a float32 copy of some rows, at least one, evenly spread."""
    return np.asarray(rows[spread(len(rows), max(1, limit))], np.float32)
