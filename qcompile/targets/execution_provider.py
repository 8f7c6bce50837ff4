"""What an execution provider of ONNX Runtime is: tables that planner and prediction read.

Providers see the graph as *node units* where they know QDQ: a node with the DequantizeLinear before
each input and the QuantizeLinear behind it. ``UNITS`` says which operators form one.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qcompile.targets.target import CodeType, Device, OperatorRule

Style = Literal["Fixed", "Runtime"]
Attribute = int | float | str | tuple[int, ...]


class Unit(enum.Enum):
    """Which Q and DQ make a node unit; the value says it in words."""

    MOVED = "one DequantizeLinear before, QuantizeLinear behind, on the same grid"
    UNARY = "one DequantizeLinear before, QuantizeLinear behind, of one type"
    ALL = "DequantizeLinear before every input, QuantizeLinear behind, of one type"
    WEIGHTED = "as ALL, with weights of a type of their own and int32 or float biases"
    NORM = "as ALL, with a bias of int32 codes"


_UNITS: dict[Unit, str] = {
    Unit.MOVED: "Expand Flatten Gather MaxPool Reshape Resize Split Squeeze Tile Transpose "
    "Unsqueeze",
    Unit.UNARY: "Abs Asin Atan AveragePool Ceil Clip Cos DepthToSpace Elu Exp Floor Gelu "
    "GlobalAveragePool GlobalMaxPool HardSwish LRN LeakyRelu Log LogSoftmax Neg Pad ReduceMax "
    "ReduceMean ReduceMin ReduceProd ReduceSum Relu Round Sigmoid Sign Sin Slice Softmax "
    "SpaceToDepth Sqrt Tanh",
    Unit.ALL: "Add Concat Div GridSample Max Min Mul PRelu Pow Sub",
    Unit.WEIGHTED: "Conv ConvTranspose Gemm MatMul",
    Unit.NORM: "InstanceNormalization LayerNormalization",
}

UNITS: Mapping[str, Unit] = {op: unit for unit, ops in _UNITS.items() for op in ops.split()}
"""Operator to the form of its node unit (optimizer/qdq_transformer/selectors_actions/shared).

BatchNormalization, comparisons, Where and TopK form units too, and the value of a Pad may be codes;
no target here writes them.
"""


@dataclass(frozen=True)
class Codes:
    """A combination of code types that a provider computes with.

    Attributes:
        activation: Type of all activations, outputs included; per-tensor.
        weight: Type of the weights; None for operators without.
        per_channel: Weights may have one scale a channel; they are symmetric then.
    """

    activation: CodeType
    weight: CodeType | None = None
    per_channel: bool = False


@dataclass(frozen=True)
class Demand:
    """What a provider asks of a node of one operator.

    Attributes:
        codes: As part of a node unit: the combinations that it takes, the best first.
        constants: Inputs that must be constant (behind their DequantizeLinear in a unit), where
            they are there.
        ranks: Ranks that the first input may have; empty for any.
        attributes: Attribute to the values that it may have; an ``axis`` is counted from the end.
        sized_from: From this axis on, the sizes of the first input must be known; None for none.
        one_grid: What it reads and makes must have the same scale and zero point.
        grid: Scale and zero point that what it makes must have.
        inputs: How many inputs it may have; None for any number.
    """

    codes: tuple[Codes, ...] = ()
    constants: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    attributes: Mapping[str, tuple[Attribute, ...]] = field(default_factory=dict)
    sized_from: int | None = None
    one_grid: bool = False
    grid: tuple[float, int] | None = None
    inputs: int | None = None


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        name: As in ``--ep``.
        registered: Its name in ONNX Runtime.
        summary: One line for people.
        device: Types that the planner takes, and why.
        static: Operators that the planner may compute on codes for it, as in ``Target.static``;
            those that the provider does not take run on the CPU provider, still in int8.
        style: Optimization style of the ``.ort`` file: Fixed bakes in the CPU provider's kernels,
            Runtime keeps the QDQ graph for a provider that compiles it.
        floats: Types that it takes outside node units; empty where it takes all there is.
        units: It sees node units; else each node by itself, and Q and DQ are foreign to it.
        quantized: Operator to what it asks of a node unit; operators that are not here are not
            taken as units.
        plain: Operator to what it asks of a node by itself. With ``shipped``, operators of that
            list are taken too, unless they are here.
        shipped: List of operators in ``onnxruntime/tools/mobile_helpers``.
        fused: Float operator to those into whose output it vanishes.
        fixed: Every size of every input must be known.
        sized: It takes more where they are.
        dropped: Operators that stay on the CPU where a piece would hold nothing else.
        float_ends: What rounds the model's inputs and restores its outputs stays on the CPU.
        integer_only: Which of its devices take no floats, in words; empty where all do.
        max_rank: Of any input.
        max_opset: The newest version of an operator that it knows.
        boundary: What it costs where the graph goes over to another provider.
        source: Where all this is said.
    """

    name: str
    registered: str
    summary: str
    device: Device
    static: Mapping[str, OperatorRule]
    style: Style
    boundary: str
    source: str
    floats: tuple[str, ...] = ("float32",)
    units: bool = True
    quantized: Mapping[str, Demand] = field(default_factory=dict)
    plain: Mapping[str, Demand] = field(default_factory=dict)
    shipped: str = ""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: bool = False
    sized: bool = False
    dropped: frozenset[str] = frozenset()
    float_ends: bool = False
    integer_only: str = ""
    max_rank: int | None = None
    max_opset: int | None = None


S8 = Codes("int8", "int8")
S8_CHANNELS = Codes("int8", "int8", per_channel=True)
U8 = Codes("uint8", "uint8")
U8S8 = Codes("uint8", "int8")
U8S8_CHANNELS = Codes("uint8", "int8", per_channel=True)
BYTES = (Codes("uint8"),)

CALIBRATED_ONLY = "it takes calibrated codes; those found while running are the CPU's alone"
