"""QNN, Qualcomm's NPU: what ONNX Runtime's provider for it takes. Tables, no logic.

Sources, read 2026-11: the documentation of onnxruntime-qnn 2.3 (that provider left onnxruntime's
repository with 2.0), its builders where they are named here, and the quantizer of the onnxruntime
wheel. No NPU was at hand.
"""

from dataclasses import replace

from qcompile.targets.execution_provider import (
    BYTES,
    CALIBRATED_ONLY,
    U8,
    U8S8,
    U8S8_CHANNELS,
    UNITS,
    Demand,
    Provider,
)
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.provider_rules import carriers, followers, norms, products, rules
from qcompile.targets.target import Device, OperatorRule, Placement, Role, Types

_NAMES = (
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
_PLAIN = tuple(_NAMES.split())
_COPYING = ("constant", "reflect", "edge")

_WEIGHTS = {
    "Conv": Demand(codes=(U8S8_CHANNELS, U8S8, U8), constants=(1, 2)),
    "ConvTranspose": Demand(codes=(U8S8_CHANNELS, U8S8, U8), constants=(1, 2)),
    "Gemm": Demand(codes=(U8, U8S8), constants=(2,)),
    "MatMul": Demand(codes=(U8,)),
}

_PAD = Demand(constants=(1, 2), ranks=(1, 2, 3, 4, 5), attributes={"mode": _COPYING}, inputs=3)
_BATCH_NORM = Demand(constants=(1, 2, 3, 4), ranks=(2, 3, 4))

# BatchNormalization has a form on codes, too. It is not planned: its factors have one scale there,
# and a model with norms behind Concats was lost by it (docs/targets.md).
_FOLLOWERS = (
    "Abs Div Elu Gelu GlobalMaxPool HardSwish LogSoftmax Max Min Neg PRelu ReduceMax ReduceMean "
    "ReduceMin Softmax SpaceToDepth Sub Tanh"
)
"""Beside those of the CPU target. Without Exp, Log, Pow, Sqrt and sums: 8 bits hold no squares."""

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
        dynamic=False,
        why=CALIBRATED_ONLY,
        placement=Placement.EVERYWHERE,
    ),
    static={
        **rules(*(op for op in ORT_CPU.static if op in _PLAIN)),
        **{op: replace(rule, products=op == "MatMul") for op, rule in products().items()},
        **norms(),
        **carriers("Expand", "Gather", "Pad", "Tile"),
        "Resize": OperatorRule("Resize", Role.CARRIER, activations=(0,), interpolates=True),
        **followers(*_FOLLOWERS.split()),
    },
    style="Runtime",
    boundary="a copy to or from the NPU, and a call of it over RPC",
    source="onnxruntime-qnn 2.3 docs/execution_providers/QNN-ExecutionProvider.md; "
    "onnxruntime/quantization/execution_providers/qnn/quant_config.py, operators/pad.py (one grid "
    "before and behind); builder/opbuilder/pad_op_builder.cc (1e167a5e), batch_norm_op_builder.cc "
    "(17b4aee3); test/providers/qnn/batchnormalization_test.cc (121722f2)",
    quantized={
        **{op: Demand(codes=BYTES) for op in UNITS if op in _PLAIN},
        **_WEIGHTS,
        "Pad": replace(_PAD, codes=BYTES),
    },
    floats=("float32", "float16"),
    plain={
        **{op: Demand() for op in _PLAIN},
        "Pad": _PAD,
        "BatchNormalization": _BATCH_NORM,
    },
    fixed=True,
    dropped=frozenset({"QuantizeLinear", "DequantizeLinear"}),
    float_ends=True,
    integer_only="an NPU without float16",
)
