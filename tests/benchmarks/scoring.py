"""Scores of an engine by the assets' own scorer, kept so that parts of the data can be scored.

The scorer is imported, never copied: where only its total is public, its outputs are recorded
once and replayed to it with fewer samples.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.benchmarks.suite import GOALS, tool

GROUPS = 20
Indices = np.ndarray
Statistic = Callable[[Indices], float]


@dataclass(frozen=True)
class Measured:
    """What an engine scores.

    Attributes:
        value: The score in the unit of the issue's table.
        statistic: The same for a part of the samples, by index.
        samples: How many there are.
        outputs: First output of each run, for silero's comparison frame by frame.
    """

    value: float
    statistic: Statistic
    samples: int
    outputs: list[np.ndarray]


def measure(name: str, engine: Path) -> Measured:
    """Score an engine on all evaluation samples of a model."""
    score = tool("score")
    run = score.ort_run(str(engine))
    outputs: list[np.ndarray] = []

    def recording(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        result: list[np.ndarray] = run(feed)
        outputs.append(result[0].argmax(1) if name == "espnetv2_s2_voc" else result[0])
        return result

    goal = GOALS[name]
    prepare = _STATISTICS[goal.metric]
    total, statistic, samples = prepare(score, name, recording, outputs)
    return Measured(goal.factor * total, lambda k: goal.factor * statistic(k), samples, outputs)


def difference(a: Measured, b: Measured) -> tuple[float, float]:
    """Return ``a - b`` on the same samples and the half width of its 95 % interval.

    Delete-a-group jackknife (Quenouille 1956; Efron and Tibshirani 1993, section 11.5): each group
    of samples is left out once, from both.
    """
    from scipy.stats import t

    groups = min(GROUPS, a.samples)
    number = np.arange(a.samples)
    parts = [
        a.statistic(keep) - b.statistic(keep)
        for keep in (number[number % groups != group] for group in range(groups))
    ]
    variance = (groups - 1) / groups * np.sum((np.array(parts) - np.mean(parts)) ** 2)
    return a.value - b.value, float(t.ppf(0.975, groups - 1) * np.sqrt(variance))


def _top1(score: Any, name: str, run: Any, outputs: list[np.ndarray]) -> Any:
    with patch.object(score, "_cls", wraps=score._cls) as spy:
        total = score.score(name, run)["top1"]
    hits = np.concatenate(outputs).argmax(1) == spy.call_args.args[2]
    return total, lambda keep: float(hits[keep].mean()), len(hits)


def _perplexity(score: Any, name: str, run: Any, outputs: list[np.ndarray]) -> Any:
    with patch.object(score, "lm_nll", wraps=score.lm_nll) as spy:
        total = score.score(name, run)["ppl"]
    _, ids, lengths = spy.call_args.args
    each = np.array([score.lm_nll(run, ids[i : i + 1], [n]) for i, n in enumerate(lengths)])

    def statistic(keep: Indices) -> float:
        return float(np.exp(np.average(each[keep, 0], weights=each[keep, 1])))

    return total, statistic, len(each)


def _map(score: Any, name: str, run: Any, outputs: list[np.ndarray]) -> Any:
    with patch.object(score, "evalmap", wraps=score.evalmap) as spy:
        total = score.score(name, run)["mAP50_95"]
    found, truth = spy.call_args.args

    def statistic(keep: Indices) -> float:
        part = score.evalmap([found[i] for i in keep], [truth[i] for i in keep])
        return float(part["mAP50_95"])

    return total, statistic, len(found)


def _miou(score: Any, name: str, run: Any, outputs: list[np.ndarray]) -> Any:
    total = score.score(name, run)["mIoU"]
    masked = [i for i in score.coco_items(score.D("coco_dev"), "eval") if _has_mask(score, i[0])]
    one_hot = np.eye(21, dtype=bool)

    def statistic(keep: Indices) -> float:
        replay = iter([outputs[i] for i in keep])
        items = [masked[i] for i in keep]
        with patch.object(score, "coco_items", lambda *_: items):
            replayed = score.score(name, lambda _: [np.moveaxis(one_hot[next(replay)], -1, 1)])
        return float(replayed["mIoU"])

    return total, statistic, len(masked)


def _psnr(score: Any, name: str, run: Any, outputs: list[np.ndarray]) -> Any:
    total = score.score(name, run)["psnr_y"]
    with np.load(score.D("espcn_x3.npz"), allow_pickle=False) as file:
        pairs = {key: file[key] for key in ("lr", "hr")}

    def statistic(keep: Indices) -> float:
        replay = iter([outputs[i] for i in keep])
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, "part.npz")
            np.savez(part, **{key: value[keep] for key, value in pairs.items()})
            with patch.object(score, "D", lambda *_: str(part)):
                return float(score.score(name, lambda _: [next(replay)])["psnr_y"])

    return total, statistic, len(pairs["lr"])


def _speech(score: Any, name: str, run: Any, outputs: list[np.ndarray]) -> Any:
    total = score.score(name, run)["mean_prob"]
    chance = np.concatenate(outputs)[:, 0]
    return total, lambda keep: float(chance[keep].mean()), len(chance)


def _has_mask(score: Any, image: str) -> bool:
    return Path(score.D("coco_dev"), "masks", f"{image}.png").exists()


_STATISTICS: dict[str, Callable[[Any, str, Any, list[np.ndarray]], Any]] = {
    "top1": _top1,
    "ppl": _perplexity,
    "mAP50_95": _map,
    "mIoU": _miou,
    "psnr_y": _psnr,
    "mean_prob": _speech,
}
