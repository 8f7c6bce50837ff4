"""``qcompile targets``: what engines can be built, from the targets' own tables."""

from qcompile.cli.options import Debug, Json
from qcompile.cli.screen import Screen
from qcompile.report.console_results import render_targets
from qcompile.report.results import TargetEntry, TargetList, WeightOnlyEntry
from qcompile.targets import TARGETS
from qcompile.targets.target import Device, Target, Types, WeightOnly, Width

EPILOG = """
qcompile inspect MODEL applies such a table to a model.
"""


def targets(as_json: Json = False, _debug: Debug = False) -> None:
    """Show each target: code types, operators with int8 kernels or weights of few bits, the others.

    Operators in no table stay in float.
    """
    answer = TargetList(targets=tuple(_entry(target) for target in TARGETS.values()))
    Screen(quiet=False, as_json=as_json).answer(answer, render_targets)


def _entry(target: Target) -> TargetEntry:
    return TargetEntry(
        name=target.name,
        summary=target.summary,
        opset=target.opset,
        devices={name: _device(device) for name, device in target.devices.items()},
        static={op: rule.role.value for op, rule in target.static.items()},
        dynamic={op: rule.role.value for op, rule in target.dynamic.items()},
        weight_only=_weight_only(target.weight_only) if target.weight_only else None,
        costs=dict(target.costs),
    )


def _device(device: Device) -> str:
    """Return what a device takes: codes, halves, and why it lacks others."""
    found = [_types(types) for types in (device.int8, device.fp8) if types is not None]
    return "; ".join([*found, *device.halves, *([device.why] if device.why else [])])


def _types(types: Types) -> str:
    bits = " of 7 bits" if types.reduce_range else ""
    kind = "symmetric " if types.symmetric else ""
    return f"{kind}{types.activation} activations, {types.weight} weights{bits}: {types.why}"


def _weight_only(few: WeightOnly) -> WeightOnlyEntry:
    return WeightOnlyEntry(
        form={"nbits": "com.microsoft::MatMulNBits", "dequantize": "DequantizeLinear"}[few.form],
        types=few.types,
        widths={bits: _width(width) for bits, width in few.widths.items()},
        levels=dict(few.levels),
        operators=tuple(few.operators),
        costs=dict(few.costs),
    )


def _width(width: Width) -> str:
    sizes = ", ".join(str(size) for size in width.group_sizes if size)
    whole = "by channel or " if 0 in width.group_sizes else ""
    levels = f"; level {', '.join(map(str, width.levels))}" if width.levels else ""
    return f"in {width.stored} bits, {whole}groups of {sizes}{levels}: {width.why}"
