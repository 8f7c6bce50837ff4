"""How long each kernel of a model takes, as ONNX Runtime's own profiler tells it.

The profiler reads the wall clock. Another program's turn on the core only ever adds to that, by
milliseconds, so the fastest run counts: beside eight busy processes a core, the median of a kernel
of 1 ms was 35 ms.
"""

import json
import re
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from qcompile.errors import EngineError
from qcompile.runtime.ort import sentence
from qcompile.runtime.provider import CPU
from qcompile.samples import Feeds

RUNS = (8, 200)
"""Fewest and most runs of which the fastest counts."""

_SUFFIX = re.compile(r"(_token_\d+)?_kernel_time$")
"""What the profiler, and before it a change of layout, adds to a node's name."""


@dataclass(frozen=True)
class KernelTime:
    """One node of the graph that ONNX Runtime really runs.

    Attributes:
        name: The node's; fused nodes have names of ONNX Runtime's making.
        op: Operator type.
        ms: Time of its fastest run, in milliseconds; steps are of a microsecond.
    """

    name: str
    op: str
    ms: float


def kernel_times(model: Path, feeds: Feeds, *, seconds: float = 1.0) -> list[KernelTime]:
    """Time the kernels of a model on one thread of this CPU, all of ONNX Runtime's rewrites on.

    Args:
        model: An ONNX file.
        feeds: One run's inputs.
        seconds: Roughly how long to measure.

    Raises:
        EngineError: ONNX Runtime refuses the model or the inputs.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(str(model), options, providers=[CPU.name])
            session.run(None, feeds)
            end = time.perf_counter() + seconds
            for done in range(1, RUNS[1]):
                if done >= RUNS[0] and time.perf_counter() > end:
                    break
                session.run(None, feeds)
            profile = Path(session.end_profiling())
        except Exception as error:
            raise EngineError(f"{model.name}: {sentence(error)}") from error
        return _kernels(json.loads(profile.read_text("utf-8")))


def _kernels(events: list[dict[str, object]]) -> list[KernelTime]:
    """Return the fastest runs, in the order in which nodes first ran."""
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        about = event.get("args")
        if event.get("cat") == "Node" and isinstance(about, dict):
            label = str(event["name"])
            if label.endswith("_kernel_time"):
                durations[label, str(about["op_name"])].append(float(str(event["dur"])))
    return [
        KernelTime(_SUFFIX.sub("", label), op, min(times) / 1e3)
        for (label, op), times in durations.items()
    ]
