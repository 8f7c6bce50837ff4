"""What engines can run; one declarative file a target."""

from qcompile.errors import RecipeError
from qcompile.targets.onnx_std import ONNX_STD
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.ort_cuda import ORT_CUDA
from qcompile.targets.ort_mobile import ORT_MOBILE
from qcompile.targets.target import Target
from qcompile.targets.tensorrt import TENSORRT, TENSORRT_RTX

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (ORT_CPU, ORT_MOBILE, ORT_CUDA, ONNX_STD, TENSORRT, TENSORRT_RTX)
}


def target_named(name: str) -> Target:
    """Return a target.

    Raises:
        RecipeError: There is none of this name; the message lists those there are.
    """
    try:
        return TARGETS[name]
    except KeyError:
        known = ", ".join(TARGETS)
        raise RecipeError(f"--target {name}: no such target; there are: {known}") from None
