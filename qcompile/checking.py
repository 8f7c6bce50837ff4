"""Check a model, or a script that builds an engine, against the rules of a target."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from qcompile.errors import RecipeError
from qcompile.lint.rule import FLAVOURS, Finding, Setting, Severity
from qcompile.lint.scripts import PYTHON, SHELL, check_script
from qcompile.lint.tensorrt import check_model
from qcompile.progress import Progress, StageLog
from qcompile.report.results import CheckReport, FindingEntry, SeverityName
from qcompile.runtime.tensorrt import major_version
from qcompile.source.onnx_file import load_model
from qcompile.targets import target_named
from qcompile.targets.profiles import Profile, check_profiles, parse_profiles

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
    progress: Progress | None = None,
) -> CheckReport:
    """Check a model as it is, without clean-up or lowering, against the rules of a target.

    Args:
        model: An ONNX file, or a script that builds an engine (``.py``, ``.sh``, ``.txt``).
        target: tensorrt or tensorrt-rtx.
        version: Major version of TensorRT; None takes the installed one, or 11.
        sms: Compute capabilities of the devices: 87 is 8.7. Empty: not known.
        shapes: Least, best and largest shape of dynamic inputs, as in ``--shapes``.
        progress: Hears of notices.

    Raises:
        QcompileError: Bad input. Findings are no errors: they are returned.
    """
    path, heard = Path(model), StageLog(progress)
    profiles = parse_profiles(shapes) if shapes is not None else {}
    setting = _setting(target, version, sms, profiles)
    if path.suffix.lower() in PYTHON | SHELL:
        if profiles:
            raise RecipeError(f"--shapes: {path} is a script; shapes are checked with the model")
        found = check_script(path, setting)
    else:
        loaded = load_model(path, heard)
        check_profiles(profiles, _dims(loaded))
        found = check_model(loaded, setting, heard)
    return _report(path, setting, found, tuple(heard.notices))


def _setting(
    target: str, version: int | None, sms: Sequence[int], profiles: Mapping[str, Profile]
) -> Setting:
    flavour = next((name for name in FLAVOURS if name == target), None)
    chosen = target_named(target)
    if flavour is None:
        raise RecipeError(
            f"--target {target}: there are no rules to check; there are for {', '.join(FLAVOURS)}"
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
    path: Path, setting: Setting, found: Sequence[Finding], notices: tuple[str, ...]
) -> CheckReport:
    devices = ", ".join(f"{sm // 10}.{sm % 10}" for sm in setting.sms)
    name = (
        "TensorRT for RTX" if setting.flavour == "tensorrt-rtx" else f"TensorRT {setting.version}"
    )
    rows = tuple(
        FindingEntry(rule=f.rule, severity=_SEVERITIES[f.severity], where=f.where, what=f.what)
        for f in found
    )
    return CheckReport(
        model=str(path),
        target=setting.flavour,
        setting=f"{name}, devices {devices}" if devices else name,
        counts={name: sum(row.severity == name for row in rows) for name in _SEVERITIES.values()},
        findings=rows,
        notices=notices,
    )
