"""Check a model, or a script that builds an engine, against the rules of a target."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from qcompile.errors import RecipeError
from qcompile.lint.cuda import PROVIDERS, Provider, check_cuda
from qcompile.lint.rule import FLAVOURS, Finding, Setting, Severity
from qcompile.lint.scripts import PYTHON, SHELL, check_script
from qcompile.lint.tensorrt import check_model
from qcompile.progress import Progress, StageLog
from qcompile.report.results import CheckReport, FindingEntry, SeverityName
from qcompile.runtime.cuda import NAMES
from qcompile.runtime.tensorrt import major_version
from qcompile.source.onnx_file import load_model
from qcompile.targets import target_named
from qcompile.targets.profiles import Profile, check_profiles, parse_profiles

CUDA = "ort-cuda"

_SEVERITIES: Mapping[Severity, SeverityName] = {
    Severity.ERROR: "error",
    Severity.FLOAT: "float",
    Severity.NUMERICS: "numerics",
    Severity.WARNING: "warning",
}


def check(
    model: Path | str,
    *,
    target: str = "tensorrt",
    version: int | None = None,
    sms: Sequence[int] = (),
    shapes: str | None = None,
    ep: str | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check a model as it is, without clean-up or lowering, against the rules of a target.

    Args:
        model: An ONNX file, or a script that builds an engine (``.py``, ``.sh``, ``.txt``).
        target: tensorrt, tensorrt-rtx or ort-cuda.
        version: Major version of TensorRT; None takes the installed one, or 11.
        sms: Compute capabilities of the devices: 87 is 8.7. Empty: not known.
        shapes: Least, best and largest shape of dynamic inputs, as in ``--shapes``.
        ep: Of ort-cuda: cuda or tensorrt; None takes cuda.
        progress: Hears of notices.

    Raises:
        QcompileError: Bad input. Findings are no errors: they are returned.
    """
    path, heard = Path(model), StageLog(progress)
    profiles = parse_profiles(shapes) if shapes is not None else {}
    provider = _provider(target, ep)
    if provider == "cuda" and (version or sms or profiles):
        option = "--trt-version" if version else "--sm" if sms else "--shapes"
        raise RecipeError(f"{option}: is for TensorRT; leave it out, or add --ep tensorrt")
    setting = _setting("tensorrt" if provider else target, version, sms, profiles)
    if provider is not None:
        loaded = _loaded(path, profiles, heard)
        found = check_cuda(loaded, provider, setting, heard)
    elif path.suffix.lower() in PYTHON | SHELL:
        if profiles:
            raise RecipeError(f"--shapes: {path} is a script; shapes are checked with the model")
        found = check_script(path, setting)
    else:
        found = check_model(_loaded(path, profiles, heard), setting, heard)
    return _report(path, setting, provider, found, tuple(heard.notices))


def _provider(target: str, ep: str | None) -> Provider | None:
    """Return the provider to check for; None for targets that have none."""
    if target != CUDA:
        if ep is not None:
            raise RecipeError(f"--ep {ep}: there are rules of providers for --target {CUDA} alone")
        return None
    chosen = ep or PROVIDERS[0]
    target_named(target).schemes(chosen)  # refuses providers that the target lacks
    return next(name for name in PROVIDERS if name == chosen)


def _loaded(path: Path, profiles: Mapping[str, Profile], heard: StageLog) -> ir.Model:
    loaded = load_model(path, heard)
    check_profiles(profiles, _dims(loaded))
    return loaded


def _setting(
    target: str, version: int | None, sms: Sequence[int], profiles: Mapping[str, Profile]
) -> Setting:
    flavour = next((name for name in FLAVOURS if name == target), None)
    chosen = target_named(target)
    if flavour is None:
        raise RecipeError(
            f"--target {target}: there are no rules to check; there are for "
            f"{', '.join((*FLAVOURS, CUDA))}"
        )
    if version is not None and flavour == "tensorrt-rtx":
        raise RecipeError(
            "--trt-version: TensorRT for RTX counts versions of its own; leave it out"
        )
    if sms:
        chosen.schemes(",".join(map(str, sms)))  # refuses devices that the target lacks
    return Setting(
        flavour=flavour,
        version=11 if flavour == "tensorrt-rtx" else major_version(version),
        sms=tuple(sms),
        profiles=profiles,
    )


def _dims(model: ir.Model) -> dict[str, tuple[int | str | None, ...] | None]:
    return {
        str(value.name): None
        if value.shape is None
        else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        for value in model.graph.inputs
    }


def _report(
    path: Path,
    setting: Setting,
    provider: Provider | None,
    found: Sequence[Finding],
    notices: tuple[str, ...],
) -> CheckReport:
    devices = ", ".join(f"{sm // 10}.{sm % 10}" for sm in setting.sms)
    name = (
        "TensorRT for RTX" if setting.flavour == "tensorrt-rtx" else f"TensorRT {setting.version}"
    )
    if provider is not None:
        behind = f" with {name}" if provider == "tensorrt" else ""
        name = f"{NAMES[provider]} of ONNX Runtime{behind}, by a table of its kernels"
    rows = tuple(
        FindingEntry(rule=f.rule, severity=_SEVERITIES[f.severity], where=f.where, what=f.what)
        for f in found
    )
    return CheckReport(
        model=str(path),
        target=CUDA if provider else setting.flavour,
        setting=f"{name}, devices {devices}" if devices else name,
        counts={name: sum(row.severity == name for row in rows) for name in _SEVERITIES.values()},
        findings=rows,
        notices=notices,
    )
