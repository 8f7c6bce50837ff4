"""What TensorRT for RTX says of models: each parsed and built, without a GPU, in its own process.

Run as ``python oracle.py`` with a line of JSON for each model on stdin: ``model`` (a path), ``sms``
and ``profiles``. Answers a line for each, in order: ``verdict`` (built; parser or builder: what
refused it; crashed) and ``said``, its words.
"""

import json
import os
import sys
import tempfile
from typing import Any

import tensorrt_rtx_bindings as trt

USUAL = 89
"""Compute capability that is built for where none is asked for."""


def judge(request: dict[str, Any]) -> dict[str, str]:
    """Parse and build one model in a child: a crash of the library is a verdict, too."""
    with tempfile.TemporaryFile("w+") as answer:
        child = os.fork()
        if not child:
            json.dump(build(**request), answer)
            answer.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        answer.seek(0)
        text = answer.read()
    if os.WIFSIGNALED(status):
        return {"verdict": "crashed", "said": f"signal {os.WTERMSIG(status)}"}
    return dict(json.loads(text))


def build(model: str, sms: list[int], profiles: dict[str, list[list[int]]]) -> dict[str, str]:
    """Return verdict and words for one model."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and "CUDA" not in message:
                self.errors.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(model):
        said = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        return {"verdict": "parser", "said": said}
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    targets = sms or [USUAL]
    config.num_compute_capabilities = len(targets)
    for index, sm in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    if profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        return {"verdict": "builder", "said": "; ".join(log.errors[:3])}
    return {"verdict": "built", "said": ""}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(judge(json.loads(line))), flush=True)
