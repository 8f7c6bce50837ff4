"""What a target is: tables that the planner reads. No logic besides look-ups."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qcompile.errors import RecipeError

CodeType = Literal["uint8", "int8"]
Form = Literal["nbits", "dequantize"]


class Role(enum.Enum):
    """What an operator is to the planner; the value says it in words."""

    WEIGHTED = "computes in int8 with constant weights"
    FOLLOWER = "computes in int8 where all its inputs are int8 already"
    CARRIER = "moves int8 codes without computing: input and output share one grid"
    ABSORBED = "vanishes into the rounding of the node before it"
    STORED = "computes in float with constant weights that are stored in few bits"


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
        output: See ``Output``.
        kernels: Operators (``domain::Op``) of the optimized graph that prove the int8 kernel.
    """

    op: str
    role: Role
    activations: tuple[int, ...] = ()
    weight: int | None = None
    bias: int | None = None
    channel_axis: int = 0
    output: Output = Output.CODES
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Types:
    """Code types for one instruction set.

    Attributes:
        activation: Type of activation codes (asymmetric, per-tensor).
        weight: Type of weight codes (symmetric, per-channel).
        reduce_range: Weights use 7 bits, since 8 saturate in the kernel.
        why: The measured or documented reason.
    """

    activation: CodeType
    weight: CodeType
    reduce_range: bool
    why: str


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
    """

    form: Form
    types: tuple[str, ...]
    widths: Mapping[int, Width]
    levels: Mapping[int, str]
    operators: Mapping[str, OperatorRule]
    costs: Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """One engine and device family.

    Attributes:
        name: As in ``--target``.
        summary: One line for ``qcompile targets``.
        opset: Working opset of the emitted model.
        types: Instruction set to code types.
        static: Operator rules of scheme int8; empty where the target has no such scheme.
        dynamic: Operator rules of scheme int8-dynamic.
        weight_only: Tables of scheme weight-only.
        costs: Operators that only lose by int8 here, with the measured reason.
        slow_convolutions: Kinds of convolution (``grouped``, ``ragged depthwise``: channels that
            are no multiple of 16) whose int8 kernel is slower than float, with the reason.
        pays_from: Multiply-adds for each element that crosses between float and codes from which
            an int8 node is faster than a float one.
    """

    name: str
    summary: str
    opset: int
    types: Mapping[str, Types]
    static: Mapping[str, OperatorRule]
    dynamic: Mapping[str, OperatorRule]
    weight_only: WeightOnly
    costs: Mapping[str, str]
    slow_convolutions: Mapping[str, str]
    pays_from: float

    def rules(self, scheme: str) -> Mapping[str, OperatorRule]:
        """Return the operator rules of a scheme.

        Raises:
            RecipeError: The target has no such scheme.
        """
        tables = {"int8": self.static, "int8-dynamic": self.dynamic}
        rules = tables.get(scheme, self.weight_only.operators)
        if not rules:
            raise RecipeError(
                f"--target {self.name} has no scheme {scheme}: it stores weights in few bits "
                "(--int4); for int8 take --target ort-cpu"
            )
        return rules
