"""From the rewritten ONNX file to what runs on the device, for each kind of target."""

from dataclasses import dataclass
from pathlib import Path

from qcompile import mobile
from qcompile.compare.gates import GateResult
from qcompile.report.schema import Delivery
from qcompile.runtime.host import host_cpu
from qcompile.targets.target import Target
from qcompile.tensorrt_engine import EngineJob
from qcompile.written import Written

UNTIMED = (
    "the engine was not run here: accuracy is that of the simulated model, by which gates are "
    "judged; nothing was timed"
)

RUN = "the engine was run and judged by TensorRT itself: see 'engine'"


@dataclass(frozen=True)
class Delivered:
    """What was made of the ONNX file.

    Attributes:
        engine: What ONNX Runtime runs on this machine as the engine; None where nothing does.
        facts: For the report; None where the ONNX file itself is the engine.
        untimed: Why a time on this machine would say nothing; empty where it does.
        judged: Gates that were judged on the device itself.
    """

    engine: Path | None
    facts: Delivery | None = None
    untimed: str = ""
    judged: tuple[GateResult, ...] = ()


def deliver(target: Target, written: Written) -> Delivered:
    """Make what runs on the device, in the folder of the ONNX file.

    Args:
        target: What it is for.
        written: What it is made of.

    Raises:
        QcompileError: The target's tools refuse the model.
    """
    if target.name == "ort-mobile":
        facts = mobile.deliver(written)
        foreign = host_cpu() != "arm"
        why = "not timed: the engine is for ARM, and this machine is not" if foreign else ""
        return Delivered(written.model.with_name(facts.path), facts, why)
    if target.name == "tensorrt-rtx":
        return Delivered(None, EngineJob(written).rtx(), UNTIMED)
    if target.name == "tensorrt":
        facts, judged = EngineJob(written).tensorrt()
        return Delivered(None, facts, RUN if facts.state == "run" else UNTIMED, judged)
    return Delivered(written.model)
