"""Execution providers of ONNX Runtime on phones: what each takes. Tables, no logic.

Sources, read 2026-11: files of microsoft/onnxruntime (main branch; the commit is named where one
was read), the lists of operators that the onnxruntime wheel ships for NNAPI and CoreML (read when
they are needed, so that they are of the installed version), and for QNN the documentation of
onnxruntime-qnn 2.3: that provider left onnxruntime's repository with 2.0. No phone was at hand.

Providers see the graph as *node units* where they know QDQ: a node with the DequantizeLinear before
each input and the QuantizeLinear behind it. ``UNITS`` says which operators form one.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import CodeType, Device, OperatorRule, Output, Role, Types

Style = Literal["Fixed", "Runtime"]
Attribute = int | float | str | tuple[int, ...]


class Unit(enum.Enum):
    """Which Q and DQ make a node unit; the value says it in words."""

    MOVED = "one DequantizeLinear before, QuantizeLinear behind, on the same grid"
    UNARY = "one DequantizeLinear before, QuantizeLinear behind, of one type"
    ALL = "DequantizeLinear before every input, QuantizeLinear behind, of one type"
    WEIGHTED = "as ALL, with weights of a type of their own and int32 or float biases"


_UNITS: dict[Unit, str] = {
    Unit.MOVED: "Expand Flatten Gather MaxPool Reshape Resize Split Squeeze Tile Transpose "
    "Unsqueeze",
    Unit.UNARY: "Abs Asin Atan AveragePool Ceil Clip Cos DepthToSpace Elu Exp Floor Gelu "
    "GlobalAveragePool GlobalMaxPool HardSwish LRN LeakyRelu Log LogSoftmax Neg ReduceMax "
    "ReduceMean ReduceMin ReduceProd ReduceSum Relu Round Sigmoid Sign Sin Slice Softmax "
    "SpaceToDepth Sqrt Tanh",
    Unit.ALL: "Add Concat Div GridSample Max Min Mul PRelu Pow Sub",
    Unit.WEIGHTED: "Conv ConvTranspose Gemm MatMul",
}

UNITS: Mapping[str, Unit] = {op: unit for unit, ops in _UNITS.items() for op in ops.split()}
"""Operator to the form of its node unit (optimizer/qdq_transformer/selectors_actions/shared).

Normalizations, comparisons, Where, Pad and TopK form units too; no target here writes them.
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
    """

    codes: tuple[Codes, ...] = ()
    constants: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    attributes: Mapping[str, tuple[Attribute, ...]] = field(default_factory=dict)
    sized_from: int | None = None
    one_grid: bool = False
    grid: tuple[float, int] | None = None


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
        note: What the prediction cannot know, for people.
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
    note: str = ""
    max_rank: int | None = None
    max_opset: int | None = None


_S8 = Codes("int8", "int8")
_S8_CHANNELS = Codes("int8", "int8", per_channel=True)
_U8 = Codes("uint8", "uint8")
_U8S8 = Codes("uint8", "int8")
_U8S8_CHANNELS = Codes("uint8", "int8", per_channel=True)
_PROBABILITIES = (1 / 256, 0)
"""The grid of what Softmax makes; other grids would have to be rounded once more."""

_PADDED = ("NOTSET", "VALID", "SAME_UPPER")


def _rules(*ops: str) -> dict[str, OperatorRule]:
    """Return rules of the CPU target, for nodes between which only codes flow."""
    return {op: replace(ORT_CPU.static[op], output=Output.CODES, kernels=()) for op in ops}


def _products() -> dict[str, OperatorRule]:
    """Return rules for products whose weights are uint8 with one scale."""
    return {op: replace(rule, per_tensor=True) for op, rule in _rules("Gemm", "MatMul").items()}


def _followers(*ops: str) -> dict[str, OperatorRule]:
    return {op: OperatorRule(op, Role.FOLLOWER) for op in ops}


CPU = Provider(
    name="cpu",
    registered="CPUExecutionProvider",
    summary="ONNX Runtime's own kernels on the ARM cores: int8 by int8",
    device=Device(
        int8=Types(
            activation="int8",
            weight="int8",
            reduce_range=False,
            why="s8 by s8 is native on ARM64, and the only pair with symmetric kernels",
        )
    ),
    static=ORT_CPU.static,
    style="Fixed",
    floats=(),
    boundary="none: there is but one provider",
    source="core/mlas/lib (S8S8: SymmQgemm, symmetric convolution); QDQIsInt8Allowed is set on ARM",
)

_IMAGE = Demand(ranks=(4,), sized_from=1)
_POOL = replace(_IMAGE, attributes={"ceil_mode": (0,), "auto_pad": _PADDED})
_CONV = replace(_IMAGE, constants=(1, 2), attributes={"auto_pad": _PADDED})
_AVERAGE: dict[str, tuple[Attribute, ...]] = {"ceil_mode": (0,), "auto_pad": _PADDED}
_LINEAR = replace(
    _IMAGE,
    constants=(2, 3),
    attributes={
        "mode": ("linear",),
        "antialias": (0,),
        "exclude_outside": (0,),
        "keep_aspect_ratio_policy": ("stretch",),
        "coordinate_transformation_mode": ("asymmetric", "half_pixel", "align_corners"),
    },
)
_PLAIN_GEMM: dict[str, tuple[Attribute, ...]] = {"alpha": (1.0,), "beta": (1.0,)}

XNNPACK = Provider(
    name="xnnpack",
    registered="XnnpackExecutionProvider",
    summary="XNNPACK's kernels on the ARM cores: int8 convolutions, float products",
    device=Device(
        int8=Types(
            activation="int8",
            weight="int8",
            reduce_range=False,
            why="its convolutions take one type for both, and scales by channel in int8 alone",
        )
    ),
    static=ORT_CPU.static,
    style="Runtime",
    boundary="a change of layout, NCHW to NHWC or back; the memory is the CPU's, nothing is copied",
    source="core/providers/xnnpack/detail/node_support_checker.cc, nn/max_pool.cc (6479e4bc), "
    "nn/conv_base.cc, nn/average_pool.cc, nn/softmax.cc (d6efbe49), tensor/resize.cc, "
    "math/gemm.cc, math/matmul.cc",
    quantized={
        "Conv": replace(_CONV, codes=(_S8_CHANNELS, _S8, _U8)),
        "ConvTranspose": replace(_CONV, codes=(_S8, _U8)),
        "MaxPool": replace(_POOL, codes=(Codes("int8"), Codes("uint8"))),
        "AveragePool": replace(
            _IMAGE, codes=(Codes("uint8"),), attributes={**_AVERAGE, "count_include_pad": (1,)}
        ),
        "Softmax": Demand(codes=(Codes("uint8"),), attributes={"axis": (-1,)}, grid=_PROBABILITIES),
        "Resize": replace(_LINEAR, codes=(Codes("int8"), Codes("uint8"))),
    },
    plain={
        "Conv": _CONV,
        "ConvTranspose": _CONV,
        "MaxPool": _POOL,
        "AveragePool": replace(_IMAGE, attributes={**_AVERAGE, "count_include_pad": (0,)}),
        "Softmax": Demand(attributes={"axis": (-1,)}),
        "Resize": _LINEAR,
        "Gemm": Demand(constants=(1, 2), ranks=(1, 2), attributes=_PLAIN_GEMM),
        "MatMul": Demand(constants=(1,), ranks=(2, 3)),
    },
    fused=dict.fromkeys(("Relu", "Clip"), ("Conv", "MaxPool", "AveragePool")),
)

_BYTES = (Codes("uint8"),)
_PLANE = Demand(ranks=(4,), attributes={"ceil_mode": (0,), "dilations": ((1, 1),)})
_MEANS = replace(_PLANE, attributes={**_PLANE.attributes, "count_include_pad": (0,)})
_GEMM = Demand(constants=(1, 2), ranks=(2,), attributes={**_PLAIN_GEMM, "transA": (0,)})
_CONVOLUTION = Demand(constants=(1, 2), ranks=(4,))

NNAPI = Provider(
    name="nnapi",
    registered="NnapiExecutionProvider",
    summary="Android's NNAPI (API level 29 and later; deprecated by Google since Android 15)",
    device=Device(
        int8=Types(
            activation="uint8",
            weight="int8",
            reduce_range=False,
            why="it reads activations as uint8 only; int8 ones fall to the CPU",
        )
    ),
    static={
        **_rules("Conv", "Add", "Mul", "Concat", "Reshape", "Transpose", "Resize", "Relu", "Clip"),
        **_products(),
        "AveragePool": OperatorRule("AveragePool", Role.CARRIER, activations=(0,)),
    },
    style="Runtime",
    boundary="a copy to or from the driver, and a call of it",
    source="core/providers/nnapi/nnapi_builtin/builders/helper.cc (beb751b4), "
    "impl/base_op_builder.h (b6a9927f), impl/conv_op_builder.cc (d9664d91), "
    "impl/gemm_op_builder.cc, impl/pool_op_builder.cc, impl/binary_op_builder.cc",
    quantized={
        "Conv": replace(_CONVOLUTION, codes=(_U8S8_CHANNELS, _U8S8, _U8)),
        "Gemm": replace(_GEMM, codes=(_U8, _U8S8)),
        "MatMul": Demand(codes=(_U8, _U8S8), constants=(1,), ranks=(2,)),
        "Add": Demand(codes=_BYTES),
        "Mul": Demand(codes=_BYTES),
        "AveragePool": replace(_MEANS, codes=_BYTES, one_grid=True),
        "Concat": Demand(codes=_BYTES),
        "Reshape": Demand(codes=_BYTES, constants=(1,)),
        "Resize": Demand(codes=_BYTES, constants=(2, 3), ranks=(4,)),
        "Softmax": Demand(codes=_BYTES, grid=_PROBABILITIES),
        "Transpose": Demand(codes=_BYTES),
    },
    plain={
        "Conv": replace(_CONVOLUTION, constants=(1,)),
        "Gemm": replace(_GEMM, constants=(1,)),
        "MatMul": Demand(constants=(1,), ranks=(2,)),
        "AveragePool": _MEANS,
        "MaxPool": _PLANE,
        **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), Demand(ranks=(4,))),
        **dict.fromkeys(("Reshape", "Split", "Squeeze", "Unsqueeze"), Demand(constants=(1,))),
        "Pad": Demand(constants=(1, 2, 3)),
        "Slice": Demand(constants=(1, 2, 3, 4)),
        "BatchNormalization": Demand(constants=(1, 2, 3, 4)),
        "Resize": Demand(constants=(2, 3), ranks=(4,)),
        "QuantizeLinear": Demand(codes=_BYTES, constants=(1, 2)),
        "DequantizeLinear": Demand(codes=_BYTES, constants=(1, 2)),
    },
    shipped="nnapi_supported_ops.md",
    fixed=True,
    dropped=frozenset({"Reshape", "Flatten", "Identity"}),
    max_rank=4,
    max_opset=19,
)

COREML = Provider(
    name="coreml",
    registered="CoreMLExecutionProvider",
    summary="Apple's Core ML as an ML program (ModelFormat=MLProgram): float16 or float32",
    device=Device(halves=("fp16",), why="it has no QuantizeLinear: codes would run on the CPU"),
    static={},
    style="Runtime",
    boundary="a copy to or from Core ML, and a call of it",
    source="core/providers/coreml/builders/impl/base_op_builder.h and .cc; the shipped list",
    floats=("float32", "float16"),
    units=False,
    plain={
        "Conv": Demand(constants=(2,), ranks=(3, 4)),
        "ConvTranspose": Demand(constants=(1, 2), ranks=(3, 4)),
        "Gemm": replace(_GEMM, constants=(1, 2)),
        **dict.fromkeys(
            ("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool"), Demand(ranks=(4,))
        ),
        "Reshape": Demand(constants=(1,), sized_from=0),
        "Slice": Demand(constants=(1, 2, 3, 4)),
        "Split": Demand(constants=(1,)),
        **dict.fromkeys(("Squeeze", "Unsqueeze"), Demand(constants=(1,))),
    },
    shipped="coreml_supported_mlprogram_ops.md",
    sized=True,
    max_rank=5,
    max_opset=20,
)

_QNN_NAMES = (
    "Abs Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast Ceil Clip Concat Conv "
    "ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Exp Expand "
    "Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool "
    "Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity "
    "InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax "
    "LpNormalization MatMul Max MaxPool Mean Min Mod Mul Neg Not Or PRelu Pad Pow QuantizeLinear "
    "RMSNormalization Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu "
    "Reshape Resize Round ScatterElements ScatterND Sigmoid Sign Sin Slice Softmax SpaceToDepth "
    "Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where"
)
_QNN_PLAIN = tuple(_QNN_NAMES.split())
_WEIGHTS = {
    "Conv": Demand(codes=(_U8S8_CHANNELS, _U8S8, _U8), constants=(1, 2)),
    "ConvTranspose": Demand(codes=(_U8S8_CHANNELS, _U8S8, _U8), constants=(1, 2)),
    "Gemm": Demand(codes=(_U8, _U8S8), constants=(2,)),
    "MatMul": Demand(codes=(_U8,)),
}

QNN = Provider(
    name="qnn",
    registered="QNNExecutionProvider",
    summary="Qualcomm's Hexagon NPU (HTP) through the plug-in onnxruntime-qnn",
    device=Device(
        int8=Types(
            activation="uint8",
            weight="int8",
            reduce_range=False,
            why="HTP computes on uint8 activations; weights by channel are int8, products uint8",
        ),
        halves=("fp16",),
    ),
    static={
        **_rules(*(op for op in ORT_CPU.static if op in _QNN_PLAIN)),
        **_products(),
        **_followers("Sub", "Div", "Tanh", "Elu", "HardSwish", "Gelu", "Softmax", "ReduceMean"),
    },
    style="Runtime",
    boundary="a copy to or from the NPU, and a call of it over RPC",
    source="onnxruntime-qnn 2.3 docs/execution_providers/QNN-ExecutionProvider.md; "
    "onnxruntime/quantization/execution_providers/qnn/quant_config.py",
    quantized={
        **{op: Demand(codes=_BYTES) for op in UNITS if op in _QNN_PLAIN},
        **_WEIGHTS,
    },
    floats=("float32", "float16"),
    plain={op: Demand() for op in _QNN_PLAIN},
    fixed=True,
    dropped=frozenset({"QuantizeLinear", "DequantizeLinear"}),
    float_ends=True,
    note="float nodes run in float16, where enable_htp_fp16_precision is on and the NPU has it",
)

PROVIDERS: Mapping[str, Provider] = {p.name: p for p in (CPU, XNNPACK, NNAPI, COREML, QNN)}
