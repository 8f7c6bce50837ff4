"""ONNX Runtime on NVIDIA GPUs: its CUDA provider, or TensorRT's behind it.

``cuda_kernels`` has what the CUDA provider computes; the tables of TensorRT hold for the other.
"""

from dataclasses import replace

from qcompile.targets.cuda_kernels import KERNELS, NBITS_GROUPS
from qcompile.targets.ort_cpu import WEIGHT_ONLY
from qcompile.targets.target import Device, Target, Width
from qcompile.targets.tensorrt import FP8, INT8, TENSORRT

_KERNEL = "read as they are by products of up to 16 rows, unpacked for more"

ORT_CUDA = Target(
    name="ort-cuda",
    summary="ONNX Runtime on NVIDIA GPUs: halves and weights of few bits; int8 through TensorRT",
    opset=21,
    devices={
        "cuda": Device(
            halves=("fp16", "bf16"),
            why="the CUDA provider has no kernels for 8-bit activations: they would run in float "
            "between conversions; --ep tensorrt has",
            kernels=KERNELS,
        ),
        "tensorrt": Device(INT8, FP8, ("fp16", "bf16")),
    },
    device_option="--ep",
    static=TENSORRT.static,
    dynamic={},
    weight_only=replace(
        WEIGHT_ONLY,
        types=("float32", "float16", "bfloat16"),
        widths={
            3: Width(4, NBITS_GROUPS, (0,), f"in 4 bits, since no kernel reads 3; {_KERNEL}"),
            4: Width(4, NBITS_GROUPS, (0,), _KERNEL),
            8: Width(8, NBITS_GROUPS, (0,), _KERNEL),
        },
        levels={0: "activations in the graph's type: the kernels ignore other levels"},
    ),
    costs=TENSORRT.costs,
    placement=TENSORRT.placement,
    small=TENSORRT.small,
    high_precision="fp16",
)
