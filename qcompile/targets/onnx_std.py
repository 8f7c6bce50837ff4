"""Standard ONNX alone, for any runtime: float operators that read weights of few bits."""

from qcompile.targets.target import OperatorRule, Output, Role, Target, WeightOnly, Width


def _read(op: str, channel_axis: int, bias: int | None = None) -> OperatorRule:
    return OperatorRule(
        op,
        Role.STORED,
        activations=(0,),
        weight=1,
        bias=bias,
        channel_axis=channel_axis,
        output=Output.EITHER,
        kernels=("ai.onnx::DequantizeLinear",),
    )


_RULES = (_read("MatMul", 1), _read("Gemm", 1, bias=2), _read("Conv", 0, bias=2))
_GROUPS = (0, 16, 32, 64, 128, 256)
_INT4 = "stored as int4: int2 is of opset 25, where ONNX Runtime 1.31 fuses to wrong products"

ONNX_STD = Target(
    name="onnx",
    summary="standard ONNX operators, any runtime: weights in few bits behind DequantizeLinear",
    opset=21,
    devices={},
    device_option="--cpu",
    static={},
    dynamic={},
    weight_only=WeightOnly(
        form="dequantize",
        types=("float32", "float16"),
        widths={
            2: Width(stored=4, group_sizes=_GROUPS, levels=(), why=_INT4),
            3: Width(stored=4, group_sizes=_GROUPS, levels=(), why="there is no type of 3 bits"),
            4: Width(stored=4, group_sizes=_GROUPS, levels=(), why="int4, uint4 since opset 21"),
            8: Width(stored=8, group_sizes=_GROUPS, levels=(), why="int8, uint8 in groups"),
        },
        levels={},
        operators={rule.op: rule for rule in _RULES},
        costs={
            "ConvTranspose": "its channels are not the first axis of its weight",
            "Gather": "the whole table would be unpacked in each run",
            "LSTM": "its weights lie along three axes",
            "GRU": "its weights lie along three axes",
            "Einsum": "which axis is summed over depends on its equation",
        },
    ),
    costs={},
)
