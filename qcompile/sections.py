"""Turns what the stages return into sections of a report."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from qcompile.bundle import FileDigest
from qcompile.compare.gates import GateResult
from qcompile.compare.layers import LayerError
from qcompile.compare.results import Comparison
from qcompile.frontend import Loaded
from qcompile.graph.runner import PassRun
from qcompile.graph.walk import all_nodes, weight_tensors
from qcompile.graph.work import multiply_adds
from qcompile.lint.rule import Finding, Severity
from qcompile.numerics.metrics import decibels
from qcompile.numerics.regrid import Given
from qcompile.plan import FLOATS, Plan
from qcompile.planning.given import Kept
from qcompile.planning.outliers import outlier_layers
from qcompile.recipe import LEARNED
from qcompile.remedied import Remedied
from qcompile.report.schema import Artifact, CalibrationSummary, FloatNode, Kernels, PlanSummary
from qcompile.report.schema import Finding as FindingRow
from qcompile.report.schema_remedies import (
    LearnedCodes,
    OutlierRow,
    RemedySection,
    RemedyTrial,
)
from qcompile.report.schema_results import ComparisonSection, Gate, LayerRow, Speed
from qcompile.report.schema_source import GridChange, ModelFacts, PassRecord, PortFacts, SourceGrids
from qcompile.runtime.ort import Kernel
from qcompile.runtime.timing import Timing
from qcompile.samples import Port
from qcompile.targets.target import Role, Target

_GRAVEST = (Severity.ERROR, Severity.NUMERICS, Severity.FLOAT, Severity.WARNING)


def model_facts(loaded: Loaded) -> ModelFacts:
    """Describe the source model; its operators are those of the canonical graph."""
    return ModelFacts(
        path=str(loaded.path),
        name=loaded.model.graph.name or "",
        sha256=loaded.files[loaded.path.name].sha256,
        bytes=sum(file.bytes for file in loaded.files.values()),
        opset=loaded.opset,
        nodes=loaded.nodes,
        parameters=parameters(loaded.model),
        inputs=tuple(port_facts(port) for port in loaded.inputs),
        outputs=tuple(port_facts(port) for port in loaded.outputs),
        operators=Counter(
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            for node, _ in all_nodes(loaded.model)
        ),
    )


def port_facts(port: Port) -> PortFacts:
    """Describe an input or output."""
    shape = (
        None if port.shape is None else tuple(dim if dim is not None else "?" for dim in port.shape)
    )
    return PortFacts(name=port.name, dtype=str(port.dtype), shape=shape)


def parameters(model: ir.Model) -> int:
    """Return the elements of all float initializers."""
    return sum(t.size for t in weight_tensors(model) if t.dtype.is_floating_point())


def pass_records(runs: Iterable[PassRun]) -> tuple[PassRecord, ...]:
    """Describe what passes did."""
    return tuple(
        PassRecord(
            name=run.name,
            options=run.options,
            modified=run.modified,
            seconds=round(run.seconds, 4),
            nodes_before=run.nodes_before,
            nodes_after=run.nodes_after,
            refusals=run.refusals,
        )
        for run in runs
    )


def plan_summary(plan: Plan, host_cpu: str, model: ir.Model) -> PlanSummary:
    """Count what a plan decided, and list what it leaves in float."""
    by_op: dict[str, Counter[str]] = {}
    with_codes = plan.scheme not in FLOATS
    for entry in plan.nodes.values():
        by_op.setdefault(entry.op, Counter())[entry.precision] += 1
    return PlanSummary(
        scheme=plan.scheme,
        target=plan.target,
        device=plan.device,
        host_cpu=host_cpu,
        nodes=Counter(entry.precision for entry in plan.nodes.values()),
        by_op={op: dict(counts) for op, counts in by_op.items()},
        tensors=Counter(tensor.kind for tensor in plan.tensors.values()),
        int8_share=int8_share(plan, model),
        float_nodes=tuple(
            FloatNode(name=name, op=entry.op, reason=entry.reason)
            for name, entry in plan.nodes.items()
            if entry.precision == "float" or (entry.precision in FLOATS and with_codes)
        ),
    )


def int8_share(plan: Plan, model: ir.Model) -> float | None:
    """Return the share of the multiply-adds of weighted nodes that run in int8."""
    work = {node.name or "": multiply_adds(node) for node in model.graph}
    total = sum(work.values())
    done = sum(w for name, w in work.items() if plan.is_quantized(name))
    return done / total if total else None


def remedy_section(
    remedied: Remedied, plan: Plan, model: ir.Model, asked: str
) -> RemedySection | None:
    """Say what was tried and done so that 8-bit activations cost less; None where nothing was.

    Args:
        remedied: What was done before the plan was made.
        plan: Has what was done after, too.
        model: The float graph with its remedies.
        asked: ``--algorithm``.
    """
    remedies = plan.remedies
    if plan.scheme == "weight-only" or not (remedies or remedied.trials or remedied.left):
        return None
    strengths = [r.strength for r in remedies.rescaled.values() if r.strength is not None]
    return RemedySection(
        asked=asked,
        trials=tuple(
            RemedyTrial(remedy=t.remedy or "", sqnr_db=decibels(1.0, t.noise), kept=t.kept)
            for t in remedied.trials
        ),
        rescaled=Counter(r.remedy for r in remedies.rescaled.values()),
        strengths=(min(strengths), max(strengths)) if strengths else None,
        multiplied=remedied.multiplied,
        shifted=len(remedies.shifted),
        corrected=Counter(correction.how for correction in remedies.corrected.values()),
        learned=_learned(plan),
        outliers=tuple(
            OutlierRow(
                node=layer.node,
                channels=None if layer.run_time else layer.channels,
                columns=layer.columns,
                share=layer.share,
                of_model=layer.of_model,
            )
            for layer in outlier_layers(model, remedies)
        ),
        left=remedied.left,
        moved=remedied.moved,
    )


def _learned(plan: Plan) -> LearnedCodes | None:
    if plan.remedies.learned is None:
        return None
    methods = [tensor.method for tensor in plan.tensors.values() if tensor.kind == "weight"]
    found = [method for method in methods if method in LEARNED]
    return LearnedCodes(
        method=found[0] if found else "",
        weights=len(found),
        of=len(methods),
        steps=plan.remedies.learned.steps,
        seed=plan.remedies.learned.seed,
    )


def calibration_summary(
    plan: Plan, method: str, tensors: int, reused: int, seconds: float
) -> CalibrationSummary:
    """Say how many tensors took which method."""
    chosen = Counter(
        t.method for t in plan.tensors.values() if t.kind == "activation" and t.method != "tied"
    )
    return CalibrationSummary(
        method=method, chosen=chosen, tensors=tensors, reused=reused, seconds=round(seconds, 3)
    )


def source_grids(given: Given, kept: Kept | None) -> SourceGrids | None:
    """Say what became of the grids of a source that is quantized already; None for another."""
    if not given:
        return None
    activations, weights = len(given.activations), len(given.weights)
    if kept is None:
        return SourceGrids(activations=activations, weights=weights, dropped=activations)
    ways: dict[str, dict[str, float | None]] = {}
    for name, change in kept.retargeted.items():
        ways.setdefault(change.what, {})[name] = change.steps
    changes = []
    for what, tensors in ways.items():
        steps = [ratio for ratio in tensors.values() if ratio is not None]
        span = (min(steps), max(steps)) if steps else None
        changes.append(GridChange(what=what, tensors=tuple(tensors), steps=span))
    return SourceGrids(
        activations=activations,
        weights=weights,
        kept=kept.kept,
        changes=tuple(changes),
        calibrated=kept.calibrated,
        dropped=len(given.activations.keys() - kept.used),
    )


def kernels(plan: Plan, model: ir.Model, target: Target, obtained: Sequence[Kernel]) -> Kernels:
    """Compare the int8 kernels that the plan counts on with those that the runtime took.

    ONNX Runtime keeps a node's name when it fuses it, so nodes are matched by name.
    """
    rules = target.rules(plan.scheme)
    ops = {node.name: node.op_type for node in model.graph}
    found = {kernel.name: kernel.op for kernel in obtained}
    expected: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    missing = []
    for name, entry in plan.nodes.items():
        rule = rules.get(ops.get(name, ""))
        if entry.precision in FLOATS or rule is None or not rule.kernels:
            continue
        if rule.role not in (Role.WEIGHTED, Role.FOLLOWER):
            continue
        label = "/".join(kernel.split("::")[1] for kernel in rule.kernels[:1])
        expected[label] += 1
        op = found.get(name) or found.get(f"{name}.{rule.kernels[0].split('::')[1]}")
        if op in rule.kernels:
            taken[label] += 1
        else:
            missing.append(f"{name} ({entry.op} runs as {op or 'something else'})")
    return Kernels(expected=expected, obtained=taken, missing=tuple(missing))


def comparison_section(comparison: Comparison | None) -> ComparisonSection:
    """Turn a comparison into its section."""
    if comparison is None:
        return ComparisonSection()
    return ComparisonSection.model_validate(comparison.model_dump())


def layer_rows(errors: Iterable[LayerError]) -> tuple[LayerRow, ...]:
    """Turn layer errors into rows."""
    return tuple(LayerRow(**error.model_dump()) for error in errors)


def speed(timing: Timing | None) -> Speed | None:
    """Turn a timing into its section."""
    if timing is None:
        return None
    return Speed(
        float_ms=timing.first_ms,
        engine_ms=timing.second_ms,
        ratio=timing.ratio,
        interval=(timing.interval.low, timing.interval.high),
        threads=timing.threads,
        pairs=timing.pairs,
    )


def gates(results: Iterable[GateResult]) -> tuple[Gate, ...]:
    """Turn gate results into rows."""
    return tuple(Gate.model_validate(result.model_dump()) for result in results)


def finding_rows(found: Iterable[Finding]) -> tuple[FindingRow, ...]:
    """Turn what a lint found into rows, the gravest first."""
    order = sorted(found, key=lambda finding: _GRAVEST.index(finding.severity))
    return tuple(
        FindingRow(
            rule=finding.rule,
            severity=finding.severity.value,
            where=finding.where,
            what=finding.what,
        )
        for finding in order
    )


def artifacts(files: Mapping[str, FileDigest]) -> tuple[Artifact, ...]:
    """List the files of a bundle."""
    return tuple(Artifact(path=n, bytes=f.bytes, sha256=f.sha256) for n, f in files.items())
