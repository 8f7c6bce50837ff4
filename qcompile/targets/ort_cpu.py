"""ONNX Runtime on CPU: what fuses to an int8 kernel, what only costs (measured on 1.31)."""

from qcompile.targets.target import (
    Device,
    OperatorRule,
    Output,
    Role,
    Target,
    Types,
    WeightOnly,
    Width,
)


def _table(*rules: OperatorRule) -> dict[str, OperatorRule]:
    return {rule.op: rule for rule in rules}


def _follower(op: str) -> OperatorRule:
    return OperatorRule(op, Role.FOLLOWER, kernels=(f"com.microsoft::QLinear{op}",))


def _carrier(op: str) -> OperatorRule:
    return OperatorRule(op, Role.CARRIER, activations=(0,))


def _few_bits(op: str, bias: int | None = None) -> OperatorRule:
    return OperatorRule(
        op,
        Role.STORED,
        activations=(0,),
        weight=1,
        bias=bias,
        channel_axis=1,
        output=Output.EITHER,
        kernels=("com.microsoft::MatMulNBits",),
    )


_GROUPS = (0, 16, 32, 64, 128, 256)

WEIGHT_ONLY = WeightOnly(
    form="nbits",
    types=("float32", "float16"),
    widths={
        2: Width(
            stored=2,
            group_sizes=(0, 32, 64, 128),
            levels=(4,),
            why="other groups and levels unpack all weights in each run: 0.01 of the speed",
        ),
        3: Width(stored=4, group_sizes=_GROUPS, levels=(4, 0), why="no kernel reads 3 bits"),
        4: Width(stored=4, group_sizes=_GROUPS, levels=(4, 0), why="kernels for both levels"),
        8: Width(
            stored=8,
            group_sizes=_GROUPS,
            levels=(4,),
            why="other levels unpack all weights in each run: 0.02 to 0.1 of the speed",
        ),
    },
    levels={
        4: "activations rounded to int8 by groups: adds about 0.5 % error, fastest",
        0: "activations in float: exact, a fifth of the speed at one token",
    },
    operators=_table(_few_bits("MatMul"), _few_bits("Gemm", bias=2)),
    costs={
        "Conv": "no kernel reads codes of few bits: the weights would be unpacked in each run",
        "ConvTranspose": "no kernel reads codes of few bits",
        "Gather": "a table look-up: the operator on codes is 90 times slower than on float",
        "LSTM": "no kernel reads codes of few bits",
        "GRU": "no kernel reads codes of few bits",
        "Einsum": "no kernel reads codes of few bits",
    },
)

_SATURATING = Types(
    activation="uint8",
    weight="int8",
    reduce_range=True,
    why="vpmaddubsw saturates at 16 bits: weights must stay within [-64, 64]",
)

ORT_CPU = Target(
    name="ort-cpu",
    summary="ONNX Runtime, CPU provider: QDQ that fuses to its int8 kernels",
    opset=21,
    devices={
        "vnni": Device(
            Types(
                activation="uint8",
                weight="int8",
                reduce_range=False,
                why="vpdpbusd multiplies u8 by s8 exactly; u8 by u8 and s8 by s8 have no fast "
                "kernel",
            )
        ),
        "avx512": Device(_SATURATING),
        "avx2": Device(_SATURATING),
        "arm": Device(
            Types(
                activation="int8",
                weight="int8",
                reduce_range=False,
                why="s8 by s8 is native, and the only pair with symmetric kernels",
            )
        ),
    },
    device_option="--cpu",
    static=_table(
        OperatorRule(
            "Conv",
            Role.WEIGHTED,
            activations=(0,),
            weight=1,
            bias=2,
            channel_axis=0,
            kernels=("com.microsoft::QLinearConv", "ai.onnx::QLinearConv"),
        ),
        OperatorRule(
            "Gemm",
            Role.WEIGHTED,
            activations=(0,),
            weight=1,
            bias=2,
            channel_axis=1,
            output=Output.EITHER,
            kernels=("com.microsoft::QGemm",),
        ),
        OperatorRule(
            "MatMul",
            Role.WEIGHTED,
            activations=(0,),
            weight=1,
            channel_axis=1,
            output=Output.EITHER,
            kernels=("com.microsoft::MatMulIntegerToFloat", "ai.onnx::QLinearMatMul"),
        ),
        _follower("Add"),
        _follower("Mul"),
        _follower("Concat"),
        _follower("AveragePool"),
        _follower("GlobalAveragePool"),
        _follower("LeakyRelu"),
        _follower("Sigmoid"),
        _carrier("MaxPool"),
        _carrier("Reshape"),
        _carrier("Flatten"),
        _carrier("Transpose"),
        _carrier("Squeeze"),
        _carrier("Unsqueeze"),
        _carrier("Slice"),
        _carrier("Split"),
        _carrier("DepthToSpace"),
        _carrier("Resize"),
        OperatorRule("Relu", Role.ABSORBED, activations=(0,)),
        OperatorRule("Clip", Role.ABSORBED, activations=(0,)),
    ),
    dynamic=_table(
        OperatorRule(
            "MatMul",
            Role.WEIGHTED,
            activations=(0,),
            weight=1,
            channel_axis=1,
            output=Output.EITHER,
            kernels=("com.microsoft::DynamicQuantizeMatMul",),
        ),
        OperatorRule(
            "Gemm",
            Role.WEIGHTED,
            activations=(0,),
            weight=1,
            bias=2,
            channel_axis=1,
            output=Output.EITHER,
            kernels=("com.microsoft::DynamicQuantizeMatMul",),
        ),
    ),
    weight_only=WEIGHT_ONLY,
    costs={
        "Softmax": "the int8 kernel is 7.5 times slower than float",
        "LayerNormalization": "no int8 kernel",
        "SimplifiedLayerNormalization": "no int8 kernel",
        "RMSNormalization": "no int8 kernel",
        "Gelu": "no int8 kernel",
        "QuickGelu": "no int8 kernel",
        "Tanh": "no int8 kernel",
        "Erf": "no int8 kernel",
        "Sub": "no int8 kernel",
        "Div": "no int8 kernel",
        "Pow": "no int8 kernel",
        "ReduceMean": "no int8 kernel",
        "ReduceSum": "no int8 kernel",
        "PRelu": "no int8 kernel",
        "HardSwish": "no int8 kernel",
        "HardSigmoid": "no int8 kernel",
        "ConvTranspose": "no int8 kernel: Q and DQ around it only cost",
        "BatchNormalization": "no int8 kernel",
        "InstanceNormalization": "no int8 kernel",
        "Pad": "no int8 kernel",
        "LSTM": "no int8 kernel for QDQ",
        "GRU": "no int8 kernel for QDQ",
        "Einsum": "no int8 kernel",
        "Gather": "a table lookup; quantizing it saves no time",
    },
    slow_convolutions={
        "grouped": "the int8 kernel of grouped convolutions has 0.2 to 0.9 of the speed of float",
        "ragged depthwise": "the int8 depthwise kernel takes multiples of 16 channels; others are "
        "slower than float",
    },
    pays_from=24.0,
)
