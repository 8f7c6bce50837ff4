"""A rewritten model on disk, and all that is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcompile.data import Split
from qcompile.frontend import Loaded
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Recipe
from qcompile.targets.profiles import Profile


@dataclass(frozen=True)
class Written:
    """What an engine is made of.

    Attributes:
        model: The ONNX file; what is made of it goes beside it.
        device: What it is for, in the words of the target's table.
        recipe: What was asked for.
        loaded: The float model.
        data: Samples.
        made: The rewritten graph and its plan.
        profiles: Least, best and largest shape of inputs with dynamic axes, for TensorRT.
        log: Hears of steps and notices.
    """

    model: Path
    device: str
    recipe: Recipe
    loaded: Loaded
    data: Split
    made: Quantized
    profiles: Mapping[str, Profile]
    log: StageLog
