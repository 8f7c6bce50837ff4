"""Execution providers of ONNX Runtime on phones: what each takes. Tables, no logic.

Sources, read 2026-11: files of microsoft/onnxruntime (main branch; the commit is named where one
was read), the lists of operators that the onnxruntime wheel ships for NNAPI and CoreML (read when
they are needed, so that they are of the installed version). QNN has a file of its own. No phone was
at hand.
"""

from collections.abc import Mapping
from dataclasses import replace

from qcompile.targets.execution_provider import (
    BYTES,
    CALIBRATED_ONLY,
    S8,
    S8_CHANNELS,
    U8,
    U8S8,
    U8S8_CHANNELS,
    Attribute,
    Codes,
    Demand,
    Provider,
)
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.provider_rules import carriers, products, rules
from qcompile.targets.qnn import QNN
from qcompile.targets.target import Device, OperatorRule, Role, Types

_PROBABILITIES = (1 / 256, 0)
"""The grid of what Softmax makes; other grids would have to be rounded once more."""
_PROBABLE = (0.0, 255 / 256)
"""The range of its uint8 codes."""

_PADDED = ("NOTSET", "VALID", "SAME_UPPER")

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
        "Conv": replace(_CONV, codes=(S8_CHANNELS, S8, U8)),
        "ConvTranspose": replace(_CONV, codes=(S8, U8)),
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
        ),
        dynamic=False,
        why=CALIBRATED_ONLY,
    ),
    static={
        **rules("Conv", "Add", "Mul", "Concat", "Reshape", "Transpose", "Resize", "Relu", "Clip"),
        **products(),
        **carriers("AveragePool"),
        "Softmax": OperatorRule("Softmax", Role.FOLLOWER, made=_PROBABLE),
    },
    style="Runtime",
    boundary="a copy to or from the driver, and a call of it",
    source="core/providers/nnapi/nnapi_builtin/builders/helper.cc (beb751b4), "
    "impl/base_op_builder.h (b6a9927f), impl/conv_op_builder.cc (d9664d91), "
    "impl/gemm_op_builder.cc, impl/pool_op_builder.cc, impl/binary_op_builder.cc, "
    "impl/softmax_op_builder.cc (06ad719a)",
    quantized={
        "Conv": replace(_CONVOLUTION, codes=(U8S8_CHANNELS, U8S8, U8)),
        "Gemm": replace(_GEMM, codes=(U8, U8S8)),
        "MatMul": Demand(codes=(U8, U8S8), constants=(1,), ranks=(2,)),
        "Add": Demand(codes=BYTES),
        "Mul": Demand(codes=BYTES),
        "AveragePool": replace(_MEANS, codes=BYTES, one_grid=True),
        "Concat": Demand(codes=BYTES),
        "Reshape": Demand(codes=BYTES, constants=(1,)),
        "Resize": Demand(codes=BYTES, constants=(2, 3), ranks=(4,)),
        "Softmax": Demand(codes=BYTES, ranks=(2, 4), grid=_PROBABILITIES),
        "Transpose": Demand(codes=BYTES),
    },
    plain={
        "Conv": replace(_CONVOLUTION, constants=(1,)),
        "Gemm": replace(_GEMM, constants=(1,)),
        "MatMul": Demand(constants=(1,), ranks=(2,)),
        "AveragePool": _MEANS,
        "MaxPool": _PLANE,
        "Softmax": Demand(ranks=(2, 4)),
        **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), Demand(ranks=(4,))),
        **dict.fromkeys(("Reshape", "Split", "Squeeze", "Unsqueeze"), Demand(constants=(1,))),
        "Pad": Demand(constants=(1, 2, 3)),
        "Slice": Demand(constants=(1, 2, 3, 4)),
        "BatchNormalization": Demand(constants=(1, 2, 3, 4)),
        "Resize": Demand(constants=(2, 3), ranks=(4,)),
        "QuantizeLinear": Demand(codes=BYTES, constants=(1, 2)),
        "DequantizeLinear": Demand(codes=BYTES, constants=(1, 2)),
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
    device=Device(
        halves=("fp16",),
        dynamic=False,
        why="it has no QuantizeLinear: codes would run on the CPU",
    ),
    static={},
    style="Runtime",
    boundary="a copy to or from Core ML, and a call of it",
    source="core/providers/coreml/builders/impl/base_op_builder.h and .cc, "
    "impl/batch_norm_op_builder.cc (008eeb96); the shipped list",
    floats=("float32", "float16"),
    units=False,
    plain={
        "Conv": Demand(constants=(2,), ranks=(3, 4)),
        "ConvTranspose": Demand(constants=(1, 2), ranks=(3, 4)),
        "Gemm": replace(_GEMM, constants=(1, 2)),
        # Not in the shipped list, but built as an ML program all the same.
        "BatchNormalization": Demand(constants=(1, 2, 3, 4), ranks=(4,)),
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

PROVIDERS: Mapping[str, Provider] = {p.name: p for p in (CPU, XNNPACK, NNAPI, COREML, QNN)}
