"""What a target is: tables that the planner reads. No logic besides look-ups."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from qcompile.errors import RecipeError

CodeType = Literal["uint8", "int8", "float8e4m3fn"]
Form = Literal["nbits", "dequantize"]
Half = Literal["fp16", "bf16"]
HighPrecision = Literal["fp32", "fp16", "bf16"]

OPTIONS = {
    "int8": "--int8",
    "int8-dynamic": "--dynamic",
    "weight-only": "--int4 or --weight-bits N",
    "fp8": "--fp8",
    "fp16": "--fp16",
    "bf16": "--bf16",
}
"""Scheme to the option that asks for it."""


ANY = "any"
"""The device of a build that names none, where the target needs no name."""


class Role(enum.Enum):
    """What an operator is to the planner; the value says it in words."""

    WEIGHTED = "computes on codes with constant weights"
    FOLLOWER = "computes in int8 where all its inputs are int8 already"
    CARRIER = "moves int8 codes without computing: input and output share one grid"
    ABSORBED = "vanishes into the rounding of the node before it"
    RESIDUAL = "fuses with the convolution before it: its other input is codes"
    STORED = "computes in float with constant weights that are stored in few bits"


class Placement(enum.Enum):
    """Where codes begin and end; the value says it in words."""

    ISLANDS = "int8 nodes hand codes on: every reader of what they make takes the rounded value"
    INPUTS = "only what weighted nodes read is rounded: the engine moves and fuses the rest"
    EVERYWHERE = "as islands, and all that can be codes is: what is float leaves the device"


class Output(enum.Enum):
    """What must stand behind an int8 node for the runtime to take its int8 kernel."""

    CODES = "codes only: every reader takes the quantized value"
    EITHER = "codes, or float straight from the int32 accumulator"


@dataclass(frozen=True)
class OperatorRule:
    """How one operator computes in int8.

    Attributes:
        op: Operator type in the default domain.
        role: See ``Role``.
        activations: Indices of the inputs that take activations; empty means all inputs.
        weight: Index of the weight input, None for operators without weights.
        bias: Index of the bias input, None where the operator has none.
        channel_axis: Axis of the weight that gets one scale a channel.
        per_tensor: The weight has one scale in all, and the type of an activation.
        output: See ``Output``.
        kernels: Operators (``domain::Op``) of the optimized graph that prove the int8 kernel.
        products: Without a constant weight it follows: it multiplies two activations.
        made: The range of what it makes, where the engine takes no other.
        interpolates: A Resize that makes values between others may be codes, too.
    """

    op: str
    role: Role
    activations: tuple[int, ...] = ()
    weight: int | None = None
    bias: int | None = None
    channel_axis: int = 0
    per_tensor: bool = False
    output: Output = Output.CODES
    kernels: tuple[str, ...] = ()
    products: bool = False
    made: tuple[float, float] | None = None
    interpolates: bool = False


@dataclass(frozen=True)
class Types:
    """Code types for one kind of device.

    Attributes:
        activation: Type of activation codes (per-tensor).
        weight: Type of weight codes (symmetric, per-channel).
        reduce_range: Weights use 7 bits, since 8 saturate in the kernel.
        why: The measured or documented reason.
        symmetric: Activations have the zero point 0.
        scale: Type that scales are stored in, and rounded to before codes are computed.
    """

    activation: CodeType
    weight: CodeType
    reduce_range: bool
    why: str
    symmetric: bool = False
    scale: Literal["float32", "float16", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Device:
    """What one kind of device takes: an instruction set, a compute capability, a provider.

    Attributes:
        int8: Code types of scheme int8; None where it has no use for them.
        fp8: Code types of scheme fp8.
        halves: Types of half precision that it computes in.
        why: Why it lacks what it lacks; empty where it lacks nothing.
        few_bits: It reads weights of few bits, where the target does.
        dynamic: It computes on codes that are found while running, where the target does.
        fixed_sizes: It takes more of a graph, or any of it, where no size of an input is open.
        static: Operator rules of its own, in place of the target's and of what is slow there.
        placement: Where codes begin and end with those rules.
        kernels: Domain and operator to the floating-point types that it computes it in; what has
            no entry it leaves to the CPU. None where it computes all that the types allow.
    """

    int8: Types | None = None
    fp8: Types | None = None
    halves: tuple[Half, ...] = ()
    why: str = ""
    few_bits: bool = True
    dynamic: bool = True
    fixed_sizes: bool = False
    static: "Mapping[str, OperatorRule] | None" = None
    placement: Placement = Placement.ISLANDS
    kernels: Mapping[tuple[str, str], frozenset[str]] | None = None

    def has(self, scheme: str) -> bool:
        """Say whether it takes what a scheme is made of; the target may lack the scheme yet."""
        taken = {"int8": self.int8, "fp8": self.fp8}
        if scheme in taken:
            return taken[scheme] is not None
        flags = {"int8-dynamic": self.dynamic, "weight-only": self.few_bits}
        return flags.get(scheme, scheme in self.halves)


@dataclass(frozen=True)
class Width:
    """How weights of so many bits are stored and computed with.

    Attributes:
        stored: Bits that a code takes in the file.
        group_sizes: Columns that may share a scale; 0 is the whole channel.
        levels: Values of ``accuracy_level``, the fastest first; empty where the form has none.
        why: The measured or documented reason.
    """

    stored: int
    group_sizes: tuple[int, ...]
    levels: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class WeightOnly:
    """How nodes that compute in float read weights of few bits.

    Attributes:
        form: nbits (``com.microsoft::MatMulNBits``) or dequantize (``DequantizeLinear``).
        types: What the graph may compute in.
        widths: Bits of a code to how they are stored.
        levels: What each value of ``accuracy_level`` computes with.
        operators: Those that take such weights, with the kernels that prove it.
        costs: Other operators with weights, and why they stay in float.
        symmetric_only: Zero points must be 0 and scales positive.
        whole_groups: The last group of a row must not be shorter.
        held: A product behind a Transpose reads its input plus 0 (``passes.hold_codes``).
    """

    form: Form
    types: tuple[str, ...]
    widths: Mapping[int, Width]
    levels: Mapping[int, str]
    operators: Mapping[str, OperatorRule]
    costs: Mapping[str, str]
    symmetric_only: bool = False
    whole_groups: bool = False
    held: bool = False


@dataclass(frozen=True)
class Target:
    """One engine and device family.

    Attributes:
        name: As in ``--target``.
        summary: One line for ``qcompile targets``.
        opset: Working opset of the emitted model.
        devices: Name of a device to what it takes; empty where any device will do.
        device_option: The option that names a device.
        static: Operator rules of the schemes int8 and fp8; empty where the target has neither.
        dynamic: Operator rules of scheme int8-dynamic.
        weight_only: Tables of scheme weight-only.
        costs: Operators that only lose by codes here, with the measured reason.
        slow_convolutions: Kinds of convolution (``grouped``, ``ragged depthwise``: channels that
            are no multiple of 16) whose int8 kernel is slower than float, with the reason.
        pays_from: Multiply-adds for each element that crosses between float and codes from which
            an int8 node is faster than a float one.
        placement: Where codes begin and end.
        small: Why nodes stay in float that are small in one way or another, by what
            ``planning.small`` calls it.
        high_precision: What the float remainder computes in unless the recipe says otherwise.
    """

    name: str
    summary: str
    opset: int
    devices: Mapping[str, Device]
    device_option: str
    static: Mapping[str, OperatorRule]
    dynamic: Mapping[str, OperatorRule]
    weight_only: WeightOnly | None
    costs: Mapping[str, str]
    slow_convolutions: Mapping[str, str] = field(default_factory=dict)
    pays_from: float = 0.0
    placement: Placement = Placement.ISLANDS
    small: Mapping[str, str] = field(default_factory=dict)
    high_precision: HighPrecision = "fp32"

    def schemes(self, device: str = "") -> tuple[str, ...]:
        """Return the schemes that the target has, on one device or at all."""
        devices = self._devices(device) if device else tuple(self.devices.values())
        some = all if device else any
        tables = {
            "int8": bool(self.static),
            "int8-dynamic": bool(self.dynamic),
            "weight-only": self.weight_only is not None,
            "fp8": bool(self.static),
            "fp16": bool(devices),
            "bf16": bool(devices),
        }
        return tuple(
            scheme
            for scheme, there in tables.items()
            if there and (not devices or some(d.has(scheme) for d in devices))
        )

    def on(self, device: str) -> "Target":
        """Return the target with the rules of one device."""
        found = self._devices(device)
        static = found[0].static if found else None
        if static is None:
            return self
        return replace(
            self,
            static=static,
            placement=found[0].placement,
            costs={},
            slow_convolutions={},
            pays_from=0.0,
        )

    def check(self, scheme: str, device: str) -> None:
        """Check that there is such a device, and that it has the scheme.

        Raises:
            RecipeError: It has not; the message lists what there is.
        """
        devices = self._devices(device)
        there = self.schemes(device if devices else "")
        if scheme in there:
            return
        place, why = f"--target {self.name}", ""
        if devices and device != ANY and there != self.schemes():
            place += f" {self.device_option} {device}"
        if scheme in self.schemes():
            place += "" if device != ANY else f" without {self.device_option}"
            lacking = (d for d in devices if d.why and not d.has(scheme))
            why = next((f" ({d.why})" for d in lacking), "")
        has = ", ".join(OPTIONS[found] for found in there)
        raise RecipeError(f"{place} has no scheme {scheme}{why}; it has: {has}")

    def types(self, scheme: str, device: str) -> Types:
        """Return the code types of a scheme with calibrated activations.

        Raises:
            RecipeError: As ``check``.
        """
        self.check(scheme, device)
        first = self._devices(device)[0]
        found = first.fp8 if scheme == "fp8" else first.int8
        assert found is not None  # noqa: S101 - checked above
        return found

    def few_bits(self) -> WeightOnly:
        """Return the tables of scheme weight-only.

        Raises:
            RecipeError: There is no such scheme.
        """
        if self.weight_only is None:
            self.check("weight-only", "")
        assert self.weight_only is not None  # noqa: S101 - checked above
        return self.weight_only

    def rules(self, scheme: str) -> Mapping[str, OperatorRule]:
        """Return the operator rules of a scheme; halves need none."""
        if scheme in ("int8", "fp8"):
            return self.static
        if scheme == "int8-dynamic":
            return self.dynamic
        return self.few_bits().operators if scheme == "weight-only" else {}

    def _devices(self, device: str) -> tuple[Device, ...]:
        """Return the devices that a name, or several with commas between, stands for.

        Raises:
            RecipeError: There is none of a name.
        """
        if not self.devices:
            return ()
        for name in device.split(","):
            if name not in self.devices:
                known = ", ".join(device for device in self.devices if device != ANY)
                raise RecipeError(
                    f"{self.device_option} {name}: {self.name} has no such device; there are: "
                    f"{known}"
                )
        return tuple(self.devices[name] for name in device.split(","))
