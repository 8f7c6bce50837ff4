"""What engines can run; one declarative file a target."""

from qcompile.errors import RecipeError
from qcompile.targets.onnx_std import ONNX_STD
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (ORT_CPU, ONNX_STD)}


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
