"""ONNX Runtime on NVIDIA GPUs: its CUDA provider, or TensorRT's behind it."""

from dataclasses import replace

from qcompile.targets.ort_cpu import WEIGHT_ONLY
from qcompile.targets.target import Device, Target, Width
from qcompile.targets.tensorrt import FP8, INT8, TENSORRT

_GROUPS = (16, 32, 64, 128)
_KERNEL = "one kernel, activations in the graph's type"

ORT_CUDA = Target(
    name="ort-cuda",
    summary="ONNX Runtime on NVIDIA GPUs: halves and weights of few bits; int8 through TensorRT",
    opset=21,
    devices={
        "cuda": Device(
            halves=("fp16", "bf16"),
            why="the CUDA provider has no kernels for 8-bit activations: they would run in float "
            "between conversions; --ep tensorrt has",
        ),
        "tensorrt": Device(INT8, FP8, ("fp16", "bf16")),
    },
    device_option="--ep",
    static=TENSORRT.static,
    dynamic={},
    weight_only=replace(
        WEIGHT_ONLY,
        widths={
            3: Width(4, _GROUPS, (0,), "no kernel reads 3 bits"),
            4: Width(4, _GROUPS, (0,), _KERNEL),
            8: Width(8, _GROUPS, (0,), _KERNEL),
        },
        levels={0: "activations in the graph's type"},
    ),
    costs=TENSORRT.costs,
    placement=TENSORRT.placement,
    small=TENSORRT.small,
    high_precision="fp16",
)
