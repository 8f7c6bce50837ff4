"""The engines of TensorRT and TensorRT for RTX: checked, built where that can be, told apart."""

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompile.compare.engine_types import EngineType, compare_types, graph_types
from qcompile.compare.gates import GateResult
from qcompile.compare.results import Agreement, Comparison, OutputError
from qcompile.data import Split
from qcompile.emit.device_files import FLOAT_MODEL, write_float_model
from qcompile.emit.ort_file import EXTERNAL_BYTES, write_engine
from qcompile.emit.tensorrt_files import EngineOptions, EngineRequest, write_engine_files
from qcompile.errors import EngineError, RecipeError, RuntimeMissingError
from qcompile.frontend import Loaded
from qcompile.graph.walk import weight_bytes
from qcompile.lint.rule import Finding, Flavour, Setting, refusal
from qcompile.lint.tensorrt import check_model
from qcompile.numerics.intervals import Interval
from qcompile.plan import CALIBRATED, FLOATS, Plan
from qcompile.profiles import profiles_of
from qcompile.progress import Progress, Silent, StageLog
from qcompile.recipe import Recipe
from qcompile.report.schema import Delivery, EngineLayer
from qcompile.report.schema import Finding as FindingRow
from qcompile.runtime import rtx, tensorrt
from qcompile.runtime.layer_dump import EngineLayer as Kernel
from qcompile.runtime.obtained import WEIGHTED, obtained
from qcompile.runtime.ort import Session
from qcompile.runtime.rtx_library import is_installed
from qcompile.runtime.tensorrt import PairTiming, TrtBuild
from qcompile.runtime.timing import Timing
from qcompile.samples import InMemory, Samples
from qcompile.sections import finding_rows
from qcompile.targets.profiles import Profile, parse_profiles
from qcompile.targets.target import ANY
from qcompile.written import JUDGED_THERE, Delivered, Written

ENGINE = "model.engine"

_NOT_OF_RTX = {
    "strip": "TensorRT for RTX strips weights on a machine with a GPU only",
    "version_compatible": "TensorRT for RTX has no engines for other versions",
    "hardware_compatible": "engines of TensorRT for RTX are for the GPUs that --sm names",
}
"""Key of the recipe to why an engine that is built without a GPU cannot have it."""

RTX: Flavour = "tensorrt-rtx"

UNTIMED = (
    "the engine was not run here: accuracy is that of the simulated model, by which gates are "
    "judged; nothing was timed"
)

UNSEEN = "the engine was not run here, and without samples it was not simulated; nothing was timed"

STRIPPED = "the engine file holds no weights: give them back from model.onnx (OnnxParserRefitter)"

RUN = "TensorRT ran the engine on the samples of the bundle; scores are of the simulated model"


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
    if recipe.gates.min_speedup is not None:
        raise RecipeError(
            "--min-speedup: an engine of TensorRT for RTX is built, but not run here, so nothing "
            "can judge it; leave it out, or build with --target tensorrt"
        )
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
            TensorRT lacks; or the parser of TensorRT for RTX refuses it, where that is the target.
    """
    found = profiles_of(recipe.tensorrt.shapes, loaded, data, log)
    _lint(loaded.model.clone(), setting_of(flavour, recipe, device, found), Silent())
    _try_parser(flavour, loaded, log)
    return found


def _try_parser(flavour: Flavour, loaded: Loaded, log: StageLog) -> None:
    """Let TensorRT for RTX parse the float graph: what it refuses is known before calibration.

    Raises:
        EngineError: It is the target, and refuses or crashes.
    """
    if is_installed() is None:
        return
    if weight_bytes(loaded.model) > EXTERNAL_BYTES:
        log.notice("too large to be parsed before it is quantized: TensorRT may yet refuse it")
        return
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        model = Path(folder) / loaded.path.name
        write_engine(loaded.model.clone(), model)
        try:
            rtx.parse(model)
        except (EngineError, RuntimeMissingError) as error:
            if flavour == RTX:
                raise
            log.notice(
                f"{error}; whether TensorRT does, its own parser will say on the device: the two "
                "mostly agree, but some operators only one of them has"
            )


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

    def rtx(self) -> Delivered:
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
        rows = finding_rows(found)
        facts = Delivery(
            kind=f"TensorRT for RTX engine for compute capability {_capabilities(self._sms())}",
            state="built",
            path=ENGINE,
            bytes=built.bytes,
            seconds=round(built.seconds, 2),
            library=f"TensorRT for RTX {is_installed()}",
            layers=self._layers(built.layers, rows),
            findings=rows,
        )
        return Delivered(None, facts, self._untimed())

    def tensorrt(self) -> Delivered:
        """Write what builds and judges the engine; do so here where TensorRT and a GPU are.

        Raises:
            QcompileError: TensorRT refuses the model.
        """
        setting = self._setting("tensorrt")
        version = setting.version
        found = _lint(ir.load(self.on.model), setting, self.on.log)
        self._write_files(version)
        facts = Delivery(kind=f"TensorRT {version} engine", findings=finding_rows(found))
        if tensorrt.installed() is None or not tensorrt.has_gpu():
            missing = "no NVIDIA GPU" if tensorrt.installed() else "TensorRT is not installed"
            note = (
                f"{missing}: the engine is yet to be built; run python3 build_engine.py in this "
                "folder on the device: it builds, compares with the samples here and exits 3 when "
                "a gate is missed"
            )
            facts = facts.model_copy(update={"notes": (note,)})
            return Delivered(None, facts, self._untimed(), left=JUDGED_THERE)
        return self._ran(self._built(), facts)

    def _built(self) -> TrtBuild:
        """Build, run and judge; the float model is built, too, to be timed beside the engine."""
        folder, log = self.on.model.parent, self.on.log
        if (folder / FLOAT_MODEL).exists():
            return tensorrt.build(folder, log)
        with tempfile.TemporaryDirectory(prefix="qcompile-") as temporary:
            floats = Path(temporary) / FLOAT_MODEL
            write_engine(self.on.loaded.model.clone(), floats)
            return tensorrt.build(folder, log, against=floats)

    def _ran(self, built: TrtBuild, facts: Delivery) -> Delivered:
        """Return what TensorRT built and ran here.

        Args:
            built: What it says.
            facts: What was known before.

        Raises:
            EngineError: It left no engine.
        """
        engine, timing = built.engine, built.timing
        if engine is None or built.device is None:
            raise EngineError(f"TensorRT left no engine: {built.message}")
        more = {
            "kind": f"{facts.kind} for {built.device.name}",
            "state": "run",
            "path": engine.name,
            "bytes": engine.bytes,
            "seconds": built.seconds,
            "library": f"TensorRT {built.tensorrt}",
            "layers": self._layers(built.layers, facts.findings),
            "notes": (
                *((f"{timing.median_ms:.3f} ms a run ({timing.how})",) if timing else ()),
                *((STRIPPED,) if self.on.recipe.tensorrt.strip else ()),
            ),
        }
        return Delivered(
            None,
            facts.model_copy(update=more),
            "" if built.samples else "not compared and not timed: there are no samples",
            compared=_compared(built) if built.samples else None,
            timing=_timing(built.speed) if built.speed else None,
            judged=tuple(GateResult(**gate.model_dump()) for gate in built.gates),
        )

    def _untimed(self) -> str:
        return UNTIMED if self.on.data.evaluation else UNSEEN

    def _setting(self, flavour: Flavour) -> Setting:
        on = self.on
        return setting_of(flavour, on.recipe, on.device, on.profiles)

    def _sms(self) -> tuple[int, ...]:
        return _sms(self.on.device)

    def _layers(
        self, kernels: tuple[Kernel, ...], found: tuple[FindingRow, ...]
    ) -> tuple[EngineLayer, ...]:
        """Return the weighted nodes, planned and obtained; those that were missed first."""
        model = ir.load(self.on.model)
        by_place: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for finding in found:
            by_place[finding.where].append((finding.rule, finding.what))
        got = {name: one.precision for name, one in obtained(model, kernels).items()}
        rows = compare_types(model, _wanted(self.on.made.plan, model), got, by_place)
        return tuple(_row(row) for row in sorted(rows, key=lambda row: not row.is_miss))

    def _write_files(self, version: int) -> None:
        options, gates = self.on.recipe.tensorrt, self.on.recipe.gates
        folder, log = self.on.model.parent, self.on.log
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
            gates=gates,
            float_model=write_float_model(folder, self.on.loaded.model, gates, log),
        )
        samples: Samples = self.on.data.evaluation or InMemory([])
        session = self.on.loaded.session or Session(self.on.loaded.path)
        write_engine_files(folder, request, samples, session.run, log)


def _lint(model: ir.Model, setting: Setting, progress: Progress) -> list[Finding]:
    """Check a graph; it must not break a rule that forbids it.

    Raises:
        EngineError: It does; names the node and the rule.
    """
    found = check_model(model, setting, progress)
    if why := refusal(found):
        raise EngineError(f"TensorRT would refuse the model: {why}")
    return found


def _compared(built: TrtBuild) -> Comparison:
    """Return the figures of the engine that TensorRT ran."""
    agreements = (Agreement(**each.model_dump(), interval=None) for each in built.agreements)
    return Comparison(
        samples=built.samples,
        outputs=tuple(OutputError(**each.model_dump()) for each in built.outputs),
        agreements=tuple(agreements),
        notes=(RUN,),
    )


def _timing(speed: PairTiming) -> Timing:
    return Timing(
        first_ms=speed.float_ms,
        second_ms=speed.engine_ms,
        ratio=speed.ratio,
        interval=Interval(*speed.interval),
        pairs=speed.pairs,
        threads=1,
    )


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
