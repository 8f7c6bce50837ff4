"""The models of the benchmarks: real ones from the assets, with calibration data and score."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.assets import asset, tool
from tests.benchmarks.peers import Feeds


@dataclass(frozen=True)
class Goal:
    """What issue 2 asks of one model.

    Attributes:
        metric: Key of the score.
        factor: From the score's unit to the table's.
        want: At least this much (at most, where ``lower_is_better``).
    """

    metric: str
    factor: float
    want: float
    lower_is_better: bool = False
    transformer: bool = False


GOALS: dict[str, Goal] = {
    "resnet20_cifar10": Goal("top1", 100, 80.5),
    "squeezenet10_dc_imagenet": Goal("top1", 100, 62.0),
    "mobilenetv1_025_vww": Goal("top1", 100, 83.8),
    "dscnn_kws": Goal("top1", 100, 91.3),
    "kwt1_kws": Goal("top1", 100, 96.8, transformer=True),
    "magika_v3_3": Goal("top1", 100, 96.99, transformer=True),  # 323 of 333
    "stories260k": Goal("ppl", 1, 3.37, lower_is_better=True, transformer=True),
    "yolox_nano_coco": Goal("mAP50_95", 100, 33.5),
    "espnetv2_s2_voc": Goal("mIoU", 100, 45.0),
    "espcn_x3": Goal("psnr_y", 1, 28.3),
    "silero_vad_16k": Goal("mean_prob", 1, 0.02),
}


def model_path(name: str) -> Path:
    """Return the float model."""
    return asset("models", f"{name}.onnx")


@cache
def calibration(name: str) -> Sequence[Feeds]:
    """Return the calibration samples of a model, one feed each."""
    return tuple(tool("calib").SETS[name]())
