"""A rewritten model on disk with all that is known of it, and what is made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcompile.compare.gates import GateResult
from qcompile.compare.results import Comparison
from qcompile.data import Split
from qcompile.frontend import Loaded
from qcompile.progress import StageLog
from qcompile.quantized import Quantized
from qcompile.recipe import Recipe
from qcompile.report.schema import Delivery
from qcompile.runtime.provider import Engine
from qcompile.runtime.timing import Timing
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


@dataclass(frozen=True)
class Delivered:
    """What was made of the ONNX file.

    Attributes:
        engine: What ONNX Runtime runs on this machine as the engine; None where nothing does.
        facts: For the report; None where the ONNX file itself is the engine.
        untimed: Why a time on this machine would say nothing; empty where it does.
        compared: The engine against the float model, as the device itself ran it.
        timing: Both timed in turn there.
        judged: Gates that were judged there.
        left: Names of gates that the device has yet to judge: what is to be run there carries them.
    """

    engine: Engine | None
    facts: Delivery | None = None
    untimed: str = ""
    compared: Comparison | None = None
    timing: Timing | None = None
    judged: tuple[GateResult, ...] = ()
    left: frozenset[str] = frozenset()


JUDGED_THERE = frozenset({"min-speedup"})
"""Gates that a script judges on the device alone: nothing else can time the engine."""
