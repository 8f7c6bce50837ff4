"""From a graph and its statistics to a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from qcompile.graph.digest import model_digest
from qcompile.graph.work import multiply_adds
from qcompile.numerics.grids import Codes
from qcompile.numerics.regrid import Given
from qcompile.plan import FLOATS, Plan, TensorPlan
from qcompile.planning.codes import marked, short
from qcompile.planning.given import KEPT
from qcompile.planning.pays import float_work, select_paying
from qcompile.planning.probe import Probe
from qcompile.planning.protect import (
    GAIN,
    all_noise,
    best_start,
    retried,
    too_loud,
    unit_noise,
)
from qcompile.planning.ranges import METHODS, Choice, by_method, choose_ranges
from qcompile.planning.rounding import Rounded, solve_codes
from qcompile.planning.select import Selection
from qcompile.planning.switchboard import Switchboard, judged_values
from qcompile.planning.tensors import plan_tensors, values_of, weight_plan
from qcompile.planning.wishes import Wishes
from qcompile.progress import Progress
from qcompile.recipe import Recipe
from qcompile.samples import Samples, first
from qcompile.statistics import Statistics
from qcompile.targets.target import Target, Types

PROBED = 8
"""Samples that candidate grids are measured on, taken in content order."""

GOOD_WORK = 1e12
"""Multiply-adds that judging all layers at the outputs may cost: some 30 s on two cores."""

EVERYTHING = 20
"""Runs of the model that trying a remedy may cost, ranges included."""

MOST_WORK = 4e12
"""... and where a single sample costs more than this, layers are not judged there at all."""


def wishes_of(recipe: Recipe) -> Wishes:
    """Return what the recipe keeps in float."""
    return Wishes(
        patterns=recipe.exclude,
        operators=recipe.exclude_ops,
        first=recipe.float_first,
        last=recipe.float_last,
    )


def activations_of(selection: Selection) -> list[str]:
    """Return the tensors whose range must be known: those with a grid of their own."""
    return [name for name in selection.activations if name not in selection.tied]


def readers(model: ir.Model, selection: Selection) -> dict[str, list[str]]:
    """Return, for each activation with its own grid, the nodes that would read it rounded."""
    values = {v.name: v for v in model.graph.inputs}
    values |= {out.name: out for node in model.graph for out in node.outputs}
    found: dict[str, list[str]] = {}
    for name in activations_of(selection):
        producer = values[name].producer()
        everyone = selection.hands_on(producer)
        uses = [use.node for use in values[name].uses()]
        names = [n.name or "" for n in uses if n.graph is model.graph]
        kept = [n for n in names if everyone or selection.nodes[n].precision not in FLOATS]
        found[name] = list(dict.fromkeys(kept))
    return found


@dataclass(frozen=True)
class Planner:
    """Makes plans for one model.

    Attributes:
        model: The lowered graph.
        statistics: Of the activations that ``select`` would quantize.
        samples: The calibration data, for measured choices; None without any.
        recipe: What the user asks for.
        target: What the engine can run.
        device: What the engine runs on.
        types: Of the codes.
        progress: Hears of the steps.
    """

    model: ir.Model
    statistics: Statistics
    samples: Samples | None
    recipe: Recipe
    target: Target
    device: str
    types: Types
    progress: Progress

    def make(self, wishes: Wishes) -> tuple[Plan, dict[str, Codes]]:
        """Decide precision, type, scale and zero point of everything.

        Args:
            wishes: What stays in float.

        Returns:
            The plan, and the codes of the weights that were solved for.
        """
        selection = self.selected(wishes)
        if not selection.activations or self.samples is None:
            return self.plan(selection, {}), {}
        known = _with_ties(self.statistics, selection.tied)
        return replace(self, statistics=known).decide(selection, wishes, self.samples)

    def decide(
        self, selection: Selection, wishes: Wishes, samples: Samples
    ) -> tuple[Plan, dict[str, Codes]]:
        """Choose ranges for a selection and codes for its weights; leave in float what is too loud.

        Args:
            selection: What may compute in int8.
            wishes: What stays in float anyway.
            samples: For measured choices.
        """
        grids, solved = self._solved(selection, samples)
        if self.recipe.keep_accuracy:
            plan = self._protected(selection, wishes, solved, samples)
        else:
            plan = self.plan(selection, self.choose(selection, samples))
        return marked(plan, grids, solved, "gptq")

    def _solved(
        self, selection: Selection, samples: Samples
    ) -> tuple[dict[str, TensorPlan], dict[str, Rounded]]:
        """Return the grids of the weights, and GPTQ's codes where they beat the nearest ones.

        Codes that are to be learned are so at the end, on what computes on codes then.
        """
        accuracy = self.recipe.accuracy
        left = accuracy.algorithms == "auto" and not self.recipe.keep_accuracy
        if left or accuracy.rounding == "rtn":
            return {}, {}
        grids = {
            name: weight_plan(values_of(self.model, name), axis, self.types)
            for name, axis in selection.weights.items()
            if axis is not None
        }
        nodes = [name for name, entry in selection.nodes.items() if entry.precision == "int8"]
        jobs = self.recipe.jobs or 1
        return grids, solve_codes(self.model, grids, nodes, samples, jobs, self.progress)

    def everything(self, wishes: Wishes) -> float | None:
        """Return the noise at the outputs with all on codes that may be, weights rounded plainly.

        Returns:
            Noise power over signal power; None where it cannot be measured: no samples, nothing to
            round, no output to judge, or a model that is too large.
        """
        selection = self.selected(wishes)
        if self.samples is None or not selection.activations or not judged_values(self.model.graph):
            return None
        work = sum(multiply_adds(node) for node in self.model.graph)
        count = _affordable(work, EVERYTHING)
        if not count:
            return None
        choices = self.choose(selection, self.samples)
        plan, judged = self.plan(selection, choices), first(self.samples, count)
        jobs = self.recipe.jobs or 1
        board = Switchboard(self.model, selection, plan, self.types, {}, judged, jobs)
        return all_noise(board, choices)

    def bounded(self, wishes: Wishes) -> Wishes:
        """Return the wishes with those for tensors that hold infinite values."""
        unbounded = {
            name: f"{name} holds infinite values: no grid covers them"
            for name, seen in self.statistics.tensors.items()
            if seen.unbounded
        }
        return replace(wishes, tensors={**wishes.tensors, **unbounded})

    def selected(self, wishes: Wishes) -> Selection:
        """Return which nodes compute in int8."""
        wishes = self.bounded(wishes)
        return select_paying(self.model, self.target, self.recipe.scheme, wishes)

    def plan(self, selection: Selection, choices: Mapping[str, Choice]) -> Plan:
        """Put the plan together."""
        scheme = self.recipe.scheme
        about = self.target, self.device, scheme
        return assemble(self.model, selection, *about, choices, self.types)

    def choose(self, selection: Selection, samples: Samples) -> dict[str, Choice]:
        """Choose each range by the error at the tensor's readers, or by the recipe's method.

        Args:
            selection: Its activations get ranges.
            samples: The errors are those on the first ``PROBED``.
        """
        jobs = self.recipe.jobs or 1

        def probe() -> Probe:
            read = readers(self.model, selection)
            return Probe(self.model, read, self.types, first(samples, PROBED), jobs)

        names = activations_of(selection)
        options = self.recipe.calibration
        symmetric = self.types.symmetric
        return choose_ranges(
            names, self.statistics, options, probe, self.progress, symmetric=symmetric
        )

    def kept(self, selection: Selection, given: Given) -> dict[str, Choice]:
        """Return the ranges that a quantized source gives, and choose those that it does not."""
        own = activations_of(selection)
        known = {n: given.activations[n].bounds() for n in own if n in given.activations}
        found = {name: Choice(*bounds, KEPT, {}) for name, bounds in known.items()}
        lacking = [name for name in own if name not in known]
        if lacking and self.samples is not None:
            found |= self.choose(replace(selection, activations=lacking), self.samples)
        return found

    def alternatives(self, selection: Selection) -> dict[str, dict[str, Choice]]:
        """Return the ranges of each single method, where the recipe leaves the choice."""
        if self.recipe.calibration.method != "auto":
            return {}
        names = activations_of(selection)
        found = {
            method: by_method(
                method,
                names,
                self.statistics,
                self.recipe.calibration,
                symmetric=self.types.symmetric,
            )
            for method in METHODS
        }
        return {
            method: {name: Choice(*ranges[name], method, {}) for name in names}
            for method, ranges in found.items()
        }

    def _protected(
        self,
        selection: Selection,
        wishes: Wishes,
        solved: Mapping[str, Rounded],
        samples: Samples,
    ) -> Plan:
        """Plan with ranges and precisions that were judged at the outputs of the model."""
        work = {node.name or "": multiply_adds(node) for node in self.model.graph}
        choices = self.choose(selection, samples)
        count = _affordable(sum(work.values()), len(selection.nodes))
        obstacle = ""
        if not count:
            obstacle = "the model is too large to measure each layer's effect on the outputs"
        elif not judged_values(self.model.graph):
            obstacle = "no output is a float or decided from one"
        if obstacle:
            self.progress.notice(
                f"{obstacle}: ranges were chosen by the error behind each tensor; no layer was "
                "left in float for accuracy"
            )
            return self.plan(selection, choices)
        codes = {name: rounded.codes for name, rounded in solved.items()}
        judged = first(samples, count)

        def judge(
            selection: Selection, choices: dict[str, Choice]
        ) -> tuple[Switchboard, dict[str, Choice]]:
            plan, jobs = self.plan(selection, choices), self.recipe.jobs or 1
            board = Switchboard(self.model, selection, plan, self.types, codes, judged, jobs)
            return board, best_start(board, {"local": choices, **self.alternatives(selection)})

        board, choices = judge(selection, choices)
        total, alone = unit_noise(board, choices, self.progress)
        cost = {
            node.name or "": float_work(node, selection, self.target) for node in self.model.graph
        }
        kept = too_loud(alone, cost, sum(work.values()), total, self.recipe.scheme)
        if kept:
            fewer = self.selected(replace(wishes, nodes={**wishes.nodes, **kept}))
            again = judge(fewer, self.choose(fewer, samples))
            if all_noise(*again) < GAIN * total:
                selection, (board, choices) = fewer, again
            else:
                self.progress.notice(
                    f"leaving the {len(kept)} loudest nodes in float would hardly make the outputs "
                    f"quieter: they stay in {self.recipe.scheme}"
                )
        choices = retried(board, choices, self.alternatives(selection), alone)
        return self.plan(selection, choices)


def _with_ties(statistics: Statistics, tied: Mapping[str, str]) -> Statistics:
    """Return statistics of tied values too: a later selection may give them a grid of their own.

    They are those of the value that they are tied to, which has all their values among its own.
    """
    more = {
        name: statistics.tensors[source]
        for name, source in tied.items()
        if source in statistics.tensors
    }
    return replace(statistics, tensors={**more, **statistics.tensors})


def _affordable(work: float, units: int) -> int:
    """Return on how many samples each layer's effect is measured, at most; 0 for none.

    The limit is a number of multiply-adds, not a time, so that the plan does not depend on how
    fast the machine is.
    """
    once = max(work, 1.0) * (units + 20)
    if once > MOST_WORK:
        return 0
    return min(PROBED, max(1, int(GOOD_WORK / once)))


def assemble(
    model: ir.Model,
    selection: Selection,
    target: Target,
    device: str,
    scheme: str,
    choices: Mapping[str, Choice],
    types: Types | None = None,
) -> Plan:
    """Put a selection and its ranges together as a plan; the types are the target's by default."""
    types = types or target.types(scheme, device)
    ranges = {name: (choice.low, choice.high, choice.method) for name, choice in choices.items()}
    tensors = plan_tensors(model, selection, types, ranges)
    for name, choice in choices.items():
        errors = {label: short(value) for label, value in choice.errors.items()}
        tensors[name] = tensors[name].model_copy(update={"errors": errors})
    return Plan(
        model=model_digest(model),
        target=target.name,
        device=device,
        scheme=scheme,
        tensors=tensors,
        nodes=selection.nodes,
    )
