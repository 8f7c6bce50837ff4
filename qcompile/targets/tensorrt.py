"""TensorRT 10 and 11, and TensorRT for RTX: explicit quantization in a strongly typed graph.

Rules and figures are from NVIDIA's parser and documentation, and from trial builds with
TensorRT-RTX 1.7.1; ``qcompile check`` holds the same rules as a lint.
"""

from collections.abc import Mapping
from dataclasses import replace

from qcompile.targets.target import (
    ANY,
    Device,
    OperatorRule,
    Output,
    Placement,
    Role,
    Target,
    Types,
    WeightOnly,
    Width,
)

INT8 = Types(
    activation="int8",
    weight="int8",
    reduce_range=False,
    symmetric=True,
    why="zero points must be 0, and uint8 is no quantized type",
)
FP8 = Types(
    activation="float8e4m3fn",
    weight="float8e4m3fn",
    reduce_range=False,
    symmetric=True,
    why="E4M3 is the only 8-bit float that is taken",
)

_NO_FP8 = "FP8 needs compute capability 8.9 or later"
NO_FP4 = "no FP4: its blocks of 16 have scales found while running, no calibration fits that"
_ADA = Device(INT8, FP8, ("fp16", "bf16"))
_BLACKWELL = replace(_ADA, why=NO_FP4)
_DEVICES: Mapping[str, Device] = {
    ANY: Device(INT8, None, ("fp16",), f"{_NO_FP8}, BF16 8.0: say which it is"),
    "75": Device(INT8, None, ("fp16",), f"{_NO_FP8}, BF16 and weights of int4 8.0", few_bits=False),
    "80": Device(INT8, None, ("fp16", "bf16"), _NO_FP8),
    "86": Device(INT8, None, ("fp16", "bf16"), _NO_FP8),
    "87": Device(INT8, None, ("fp16", "bf16"), _NO_FP8),
    "89": _ADA,
    "90": _ADA,
    "100": _BLACKWELL,
    "103": _BLACKWELL,
    "110": _BLACKWELL,
    "120": _BLACKWELL,
    "121": _BLACKWELL,
}


def _weighted(op: str, channel_axis: int) -> OperatorRule:
    """Return the rule of an operator with codes; its bias stays in float: int32 does not parse."""
    return OperatorRule(
        op,
        Role.WEIGHTED,
        activations=(0,),
        weight=1,
        channel_axis=channel_axis,
        output=Output.EITHER,
    )


def _stored(op: str) -> OperatorRule:
    return OperatorRule(
        op, Role.STORED, activations=(0,), weight=1, channel_axis=1, output=Output.EITHER
    )


def _weight_only(group_sizes: tuple[int, ...]) -> WeightOnly:
    groups = f"kernels read groups of {', '.join(map(str, group_sizes))} of int4"
    return WeightOnly(
        form="dequantize",
        types=("float32", "float16"),
        widths={
            3: Width(4, group_sizes, (), "there is no type of 3 bits"),
            4: Width(4, group_sizes, (), groups),
        },
        levels={},
        operators={op: _stored(op) for op in ("MatMul", "Gemm")},
        costs={
            "Conv": "int4 in groups is taken by MatMul and Gemm alone",
            "ConvTranspose": "int4 in groups is taken by MatMul and Gemm alone",
            "Gather": "a quantized table would be unpacked as a whole",
            "Einsum": "int4 in groups is taken by MatMul and Gemm alone",
        },
        symmetric_only=True,
        whole_groups=True,
    )


_FUSED = "fused, or computed between kernels: rounding it would only cost"
_MOVED = "moves data: TensorRT moves the rounding of its reader in front of it by itself"

TENSORRT = Target(
    name="tensorrt",
    summary="TensorRT 10 and 11: symmetric int8 and fp8, int4 weights, halves",
    opset=21,
    devices=_DEVICES,
    device_option="--sm",
    static={
        "Conv": _weighted("Conv", 0),
        "Gemm": _weighted("Gemm", 1),
        "MatMul": _weighted("MatMul", 1),
        "Add": OperatorRule("Add", Role.RESIDUAL),
    },
    dynamic={},
    weight_only=_weight_only((64, 128)),
    costs={
        **dict.fromkeys(
            (
                "MaxPool",
                "Reshape",
                "Flatten",
                "Transpose",
                "Squeeze",
                "Unsqueeze",
                "Slice",
                "Split",
                "Concat",
                "DepthToSpace",
                "SpaceToDepth",
            ),
            _MOVED,
        ),
        **dict.fromkeys(
            ("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Mul"),
            _FUSED,
        ),
        "Softmax": "attention has one fused kernel in half precision; codes inside break it up",
        "LayerNormalization": "no kernel on codes",
        "Gelu": "no kernel on codes",
        "ConvTranspose": "built with codes, it computes in float all the same",
        "AveragePool": "no kernel on codes where it was tried",
        "GlobalAveragePool": "no kernel on codes where it was tried",
        "Resize": "no kernel on codes where it was tried",
        "Gather": "a quantized table does not build",
        "Pad": "computed between kernels: no rounding moves across it",
    },
    placement=Placement.INPUTS,
    small={
        "channels": "a convolution of few channels: its float kernel is as fast",
        "groups": "a grouped convolution whose window is below 3 or whose channels are no multiple "
        "of 8: no kernel takes its codes",
        "fp8 convolution": "fp8 convolutions take more than 16 channels, windows of at most 32 "
        "numbers, no groups",
        "columns": "a matrix of few rows or columns: its float kernel is as fast",
        "row": "a single row goes in: to read its weights takes as long in float",
    },
    high_precision="fp16",
)

TENSORRT_RTX = replace(
    TENSORRT,
    name="tensorrt-rtx",
    summary="TensorRT for RTX: engines built ahead of time on a machine without a GPU",
    devices={
        "75": Device(
            halves=("fp16",),
            why="int8 convolutions compute in float there; FP8 needs compute capability 8.9, BF16 "
            "and weights of int4 8.0",
            few_bits=False,
        ),
        **{name: _DEVICES[name] for name in ("80", "86", "89", "120", "121")},
    },
    weight_only=replace(_weight_only((16, 32, 64, 128)), held=True),
)
