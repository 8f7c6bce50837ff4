"""The engines of TensorRT and TensorRT for RTX: checked, built where that can be, told apart."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from qcompile.compare.engine_types import EngineType, compare_types, graph_types
from qcompile.compare.gates import GateResult
from qcompile.data import Split
from qcompile.emit.tensorrt_files import EngineOptions, EngineRequest, write_engine_files
from qcompile.errors import EngineError, RecipeError, RuntimeMissingError
from qcompile.frontend import Loaded
from qcompile.lint.rule import Finding, Flavour, Setting, Severity
from qcompile.lint.tensorrt import check_model
from qcompile.plan import CALIBRATED, FLOATS, Plan
from qcompile.profiles import profiles_of
from qcompile.progress import Progress, Silent, StageLog
from qcompile.recipe import Recipe
from qcompile.report.schema import Delivery, EngineLayer
from qcompile.runtime import rtx, tensorrt
from qcompile.runtime.layer_dump import EngineLayer as Kernel
from qcompile.runtime.obtained import WEIGHTED, obtained
from qcompile.runtime.ort import Session
from qcompile.runtime.rtx_library import is_installed
from qcompile.samples import InMemory, Samples
from qcompile.sections import finding_rows
from qcompile.targets.profiles import Profile, parse_profiles
from qcompile.targets.target import ANY
from qcompile.written import Written

ENGINE = "model.engine"

_NOT_OF_RTX = {
    "strip": "TensorRT for RTX strips weights on a machine with a GPU only",
    "version_compatible": "TensorRT for RTX has no engines for other versions",
    "hardware_compatible": "engines of TensorRT for RTX are for the GPUs that --sm names",
}
"""Key of the recipe to why an engine that is built without a GPU cannot have it."""

RTX: Flavour = "tensorrt-rtx"


def check_options(flavour: Flavour, recipe: Recipe) -> None:
    """Refuse what can be refused before any file is read.

    Raises:
        RecipeError: The shapes are malformed, or there is no such version or option.
        RuntimeMissingError: TensorRT for RTX is not installed.
    """
    options = recipe.tensorrt
    if options.shapes is not None:
        parse_profiles(options.shapes)
    if flavour != RTX:
        tensorrt.major_version(options.version)
        return
    for key, asked in {
        "strip": options.strip,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible != "none",
    }.items():
        if asked:
            raise RecipeError(
                f"[tensorrt] {key}: {_NOT_OF_RTX[key]}; leave it out, or build with "
                "--target tensorrt"
            )
    if is_installed() is None:
        raise RuntimeMissingError(
            "--target tensorrt-rtx: TensorRT for RTX is not installed: "
            "pip install 'qcompile[tensorrt-rtx]'"
        )


def shapes_for(
    flavour: Flavour, recipe: Recipe, device: str, loaded: Loaded, data: Split, log: StageLog
) -> dict[str, Profile]:
    """Return the shapes that the engine takes; refuse a model that no precision would save.

    Raises:
        RecipeError: The shapes contradict the model, or are not known.
        EngineError: The float model breaks a rule that forbids it, such as an operator that
            TensorRT lacks.
    """
    found = profiles_of(recipe.tensorrt.shapes, loaded, data, log)
    _lint(loaded.model.clone(), setting_of(flavour, recipe, device, found), Silent())
    return found


def setting_of(
    flavour: Flavour, recipe: Recipe, device: str, profiles: Mapping[str, Profile]
) -> Setting:
    """Return what the lint checks for."""
    version = 11 if flavour == RTX else tensorrt.major_version(recipe.tensorrt.version)
    return Setting(flavour, version, _sms(device), profiles)


@dataclass(frozen=True)
class EngineJob:
    """One engine to make.

    Attributes:
        on: What it is made of.
    """

    on: Written

    def rtx(self) -> Delivery:
        """Build an engine of TensorRT for RTX, which takes no GPU, and read its layers' types.

        Raises:
            QcompileError: It is not installed, or refuses the model.
        """
        found = _lint(ir.load(self.on.model), self._setting(RTX), self.on.log)
        options = self.on.recipe.tensorrt
        request = rtx.RtxRequest(
            model=self.on.model,
            engine=self.on.model.with_name(ENGINE),
            sms=self._sms(),
            profiles=self.on.profiles,
            workspace_bytes=_bytes(options.workspace_mib),
            optimization_level=options.optimization_level,
            weight_streaming=options.weight_streaming,
        )
        built = rtx.build(request, self.on.log)
        for warning in built.warnings:
            self.on.log.notice(f"TensorRT for RTX warns: {warning}")
        return Delivery(
            kind=f"TensorRT for RTX engine for compute capability {_capabilities(self._sms())}",
            state="built",
            path=ENGINE,
            bytes=built.bytes,
            seconds=round(built.seconds, 2),
            library=f"TensorRT for RTX {is_installed()}",
            layers=self._layers(built.layers, found),
            findings=finding_rows(found),
        )

    def tensorrt(self) -> tuple[Delivery, tuple[GateResult, ...]]:
        """Write what builds and judges the engine; do so here where TensorRT and a GPU are.

        Returns:
            What was made, and the gates that were judged on the GPU.

        Raises:
            QcompileError: TensorRT refuses the model.
        """
        setting = self._setting("tensorrt")
        version = setting.version
        found = _lint(ir.load(self.on.model), setting, self.on.log)
        self._write_files(version)
        kind = f"TensorRT {version} engine"
        if tensorrt.installed() is None or not tensorrt.has_gpu():
            missing = "no NVIDIA GPU" if tensorrt.installed() else "TensorRT is not installed"
            note = (
                f"{missing}: the engine is yet to be built; run python3 build_engine.py in this "
                "folder on the device: it builds, compares with the samples here and exits 3 when "
                "a gate is missed"
            )
            return Delivery(kind=kind, findings=finding_rows(found), notes=(note,)), ()
        built = tensorrt.build(self.on.model.parent, self.on.log)
        engine = built.engine
        if engine is None:
            raise EngineError(f"TensorRT left no engine: {built.message}")
        timing = built.timing
        took = f"{timing.median_ms:.3f} ms a run ({timing.how})" if timing else ""
        figures = [
            f"output {row.name}: {row.sqnr_db:.1f} dB against the float model"
            for row in built.outputs
            if row.sqnr_db is not None
        ]
        judged = tuple(GateResult(**gate.model_dump()) for gate in built.gates)
        facts = Delivery(
            kind=f"{kind} for {built.device.name}" if built.device else kind,
            state="run" if built.device else "built",
            path=engine.name,
            bytes=engine.bytes,
            seconds=built.seconds,
            library=f"TensorRT {built.tensorrt}",
            layers=self._layers(built.layers, found),
            findings=finding_rows(found),
            notes=(*([took] if took else []), *figures),
        )
        return facts, judged

    def _setting(self, flavour: Flavour) -> Setting:
        on = self.on
        return setting_of(flavour, on.recipe, on.device, on.profiles)

    def _sms(self) -> tuple[int, ...]:
        return _sms(self.on.device)

    def _layers(self, kernels: tuple[Kernel, ...], found: list[Finding]) -> tuple[EngineLayer, ...]:
        """Return the weighted nodes, planned and obtained; those that were missed first."""
        model = ir.load(self.on.model)
        by_place: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for finding in found:
            by_place[finding.where].append((finding.rule, finding.what))
        got = {name: one.precision for name, one in obtained(model, kernels).items()}
        rows = compare_types(model, _wanted(self.on.made.plan, model), got, by_place)
        return tuple(_row(row) for row in sorted(rows, key=lambda row: not row.is_miss))

    def _write_files(self, version: int) -> None:
        options = self.on.recipe.tensorrt
        request = EngineRequest(
            model=self.on.model.name,
            inputs=self.on.loaded.inputs,
            outputs=tuple(port.name for port in self.on.loaded.outputs),
            version=version,
            profiles=self.on.profiles,
            options=EngineOptions(
                workspace_bytes=_bytes(options.workspace_mib),
                optimization_level=options.optimization_level,
                version_compatible=options.version_compatible,
                hardware_compatible=options.hardware_compatible,
                weight_streaming=options.weight_streaming,
                strip=options.strip,
                refit=options.strip,
            ),
            gates=self.on.recipe.gates,
        )
        samples: Samples = self.on.data.evaluation or InMemory([])
        session = self.on.loaded.session or Session(self.on.loaded.path)
        write_engine_files(self.on.model.parent, request, samples, session.run, self.on.log)


def _lint(model: ir.Model, setting: Setting, progress: Progress) -> list[Finding]:
    """Check a graph; it must not break a rule that forbids it.

    Raises:
        EngineError: It does; names the node and the rule.
    """
    found = check_model(model, setting, progress)
    errors = [finding for finding in found if finding.severity is Severity.ERROR]
    if errors:
        first, more = errors[0], len(errors) - 1
        others = f" (and {more} more: qcompile check lists them)" if more else ""
        raise EngineError(
            f"TensorRT would refuse the model: {first.where}: {first.what} ({first.rule}){others}"
        )
    return found


def _sms(device: str) -> tuple[int, ...]:
    return () if device == ANY else tuple(map(int, device.split(",")))


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib << 20


def _capabilities(sms: tuple[int, ...]) -> str:
    return ", ".join(f"{sm // 10}.{sm % 10}" for sm in sms) or "8.0 and later"


def _wanted(plan: Plan, model: ir.Model) -> dict[str, str]:
    """Return what each weighted node was planned in, in the words of ``runtime.obtained``.

    Nodes in float are of interest where the scheme is a half type, and else what was expected.
    """
    in_graph = graph_types(model, WEIGHTED)
    found: dict[str, str] = {}
    for name, asked in in_graph.items():
        precision = plan.precision(name)
        if precision in CALIBRATED:
            found[name] = precision
        elif precision == "weight-only" or plan.scheme in FLOATS:
            found[name] = asked  # codes of 3 bits are stored in 4
    return found


def _row(row: EngineType) -> EngineLayer:
    rule = f"{row.rule}: {row.why}" if row.why else row.rule
    return EngineLayer(
        node=row.node, op=row.op, wanted=row.wanted, obtained=row.obtained, rule=rule
    )
