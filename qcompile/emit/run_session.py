"""Runs a bundle in ONNX Runtime on its GPU, compares it with the float model, judges its gates.

``python run_session.py`` in the bundle's folder. It needs onnxruntime-gpu and numpy, nothing else;
Python 3.8 or later. It reads ``session_options.json``, the ONNX model and ``samples.npz``, makes
the session as the options say, and writes ``result.json``: figures, gates, nodes by provider. With
TensorRT's provider the first session builds engines, which stay in ``trt_cache``; where an
EPContext model is asked for, they go into ``model_ctx.onnx``, which is then run and judged.

Exit codes: 0 all gates are kept, 2 bad input or ONNX Runtime refuses, 3 a gate is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import onnxruntime as ort
except ImportError as problem:
    sys.stderr.write(
        f"error: onnxruntime cannot be imported ({problem}): pip install onnxruntime-gpu\n"
    )
    sys.exit(2)
if TYPE_CHECKING:
    import qcompile.emit.engine_figures as figures
    import qcompile.emit.engine_timing as timing
    from qcompile.emit.engine_request import (
        FORMAT,
        Refused,
        concluded,
        read_request,
        read_samples,
        say,
    )
else:
    sys.path.append(str(Path(__file__).resolve().parent))  # python -I leaves it out
    import engine_figures as figures
    import engine_timing as timing
    from engine_request import FORMAT, Refused, concluded, read_request, read_samples, say

REQUEST, RESULT = "session_options.json", "result.json"
HOW = "host clock of run(), copies to and from the device included"
CPU = "CPUExecutionProvider"
_FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_SILENT = 4
_KEYS: dict[str, tuple[type, ...]] = {
    "providers": (list,),
    "session": (dict,),
    "rewrites": (bool,),
    "context": (str, type(None)),
}


def main(arguments: list[str]) -> int:
    """Load, run, judge; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument(
        "--cpu", action="store_true", help="run it on the CPU instead: proves the files, no GPU"
    )
    options = parser.parse_args(arguments)
    ort.set_default_logger_severity(_SILENT)
    result: dict[str, Any] = {"version": FORMAT, "onnxruntime": ort.__version__}
    work = partial(make, options.folder, result, on_cpu=options.cpu)
    return concluded(options.folder / RESULT, result, work)


def make(folder: Path, result: dict[str, Any], *, on_cpu: bool) -> int:
    """Fill in the result and return the exit code.

    Raises:
        Refused: Bad input, no such provider, or ONNX Runtime refuses.
    """
    request = read_options(folder / REQUEST)
    if on_cpu:
        say("on the CPU: this proves the files and the figures' way, not what a GPU computes")
        request.update(providers=[[CPU, {}]], context=None)
    result["provider"] = request["providers"][0][0]
    start = time.perf_counter()
    model = folder / request["model"]
    if request["context"]:
        model = build_context(folder, request)
        say(f"built {model.name} in {time.perf_counter() - start:.1f} s")
        start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="run-session-") as profiles:
        session = load(folder, model, request, profile=Path(profiles) / "profile")
        result["load_seconds"] = round(time.perf_counter() - start, 3)
        say(f"{model.name} is loaded by {result['provider']} in {result['load_seconds']:.1f} s")
        reference = load_reference(folder, request)
        prove(folder, session, reference, request, result)
    missed = not all(gate["passed"] for gate in result["gates"])
    result["status"] = "gate missed" if missed else "run"
    return 3 if missed else 0


def read_options(path: Path) -> dict[str, Any]:
    """Return what ``session_options.json`` asks for.

    Raises:
        Refused: It is missing or damaged, or names a file outside its folder.
    """
    request = read_request(path, _KEYS, ("context",))
    try:
        request["providers"] = [(str(name), dict(given)) for name, given in request["providers"]]
    except (ValueError, TypeError) as error:
        raise Refused(f"{path}: is damaged ({error!r}): copy the bundle again") from error
    if not request["providers"]:
        raise Refused(f"{path}: providers cannot be []")
    return request


def build_context(folder: Path, request: dict[str, Any]) -> Path:
    """Let the provider write a model that holds its engines; return it.

    Raises:
        Refused: It does not.
    """
    path = folder / str(request["context"])
    path.unlink(missing_ok=True)  # ONNX Runtime does not replace one
    load(folder, folder / request["model"], request, context=path)
    if not path.is_file():
        raise Refused(f"{request['providers'][0][0]} wrote no {path.name}: it has taken no node")
    return path


def load(
    folder: Path,
    model: Path,
    request: dict[str, Any],
    *,
    profile: Path | None = None,
    context: Path | None = None,
) -> ort.InferenceSession:
    """Make the session as the options say.

    Raises:
        Refused: There is no such provider, or it cannot be loaded, or it refuses the model.
    """
    chain = [(name, placed(options, folder)) for name, options in request["providers"]]
    wanted = chain[0][0]
    if wanted not in ort.get_available_providers():
        raise Refused(
            f"this onnxruntime has no {wanted}: pip install onnxruntime-gpu, or prove the files "
            "without a GPU by --cpu"
        )
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        level.ORT_ENABLE_ALL if request["rewrites"] else level.ORT_DISABLE_ALL
    )
    entries = dict(request["session"])
    if context is not None:
        entries.update({"ep.context_enable": "1", "ep.context_file_path": str(context)})
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        session = ort.InferenceSession(str(model), options, providers=chain, enable_fallback=0)
    except Exception as error:
        raise Refused(f"{model.name}: {error}") from error
    if session.get_providers()[0] != wanted:
        raise Refused(f"{wanted} cannot be loaded: a library of NVIDIA's is missing or too old")
    return session


def load_reference(folder: Path, request: dict[str, Any]) -> ort.InferenceSession | None:
    """Return a session of the float model by the same providers; None where there is none.

    Its float32 products may be computed in TF32, as the provider does by itself.
    """
    if request["float_model"] is None:
        return None
    return load(folder, folder / request["float_model"], request)


def placed(options: dict[str, str], folder: Path) -> dict[str, str]:
    """Return a provider's options with its paths in the folder."""
    return {k: str(folder / v) if k.endswith("_path") else v for k, v in options.items()}


def prove(
    folder: Path,
    session: ort.InferenceSession,
    reference: ort.InferenceSession | None,
    request: dict[str, Any],
    result: dict[str, Any],
) -> None:
    """Run the samples, time the last, see which provider ran which node, judge.

    Raises:
        Refused: A sample does not fit, or a node fails.
    """
    kinds = {each.name: each.type for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    if set(kinds) != set(request["inputs"]) or set(names) != set(request["outputs"]):
        raise Refused("samples and model do not belong together: other inputs or outputs")
    outputs = [figures.Output(name) for name in request["outputs"]]
    feeds: dict[str, np.ndarray] = {}
    inputs: dict[str, np.ndarray] = {}
    nodes: Counter[tuple[str, str]] = Counter()
    for index, (inputs, expected) in enumerate(read_samples(folder / "samples.npz", request)):
        feeds = {name: as_fed(array, name, kinds[name]) for name, array in inputs.items()}
        found = dict(zip(names, run(session, feeds)))  # noqa: B905 (Python 3.8)
        if index == 0:
            nodes = nodes_of(Path(session.end_profiling()))
        for output in outputs:
            output.add(expected[output.name], np.asarray(found[output.name]), inputs)
    if not feeds:
        session.end_profiling()
    result["nodes"] = dict(sum_by(nodes, 0))
    wanted = result["provider"]
    result["elsewhere"] = {f"{p}: {op}": n for (p, op), n in sorted(nodes.items()) if p != wanted}
    result["samples"] = request["samples"]
    if feeds:
        result["timing"] = timed(session, feeds)
        if reference is not None:
            result["speed"] = timed_pair(reference, session, inputs)
    figures.add_figures(request, outputs, result)
    say(placement(result))
    say(figures.told_figures(request["samples"], result))


def as_fed(array: np.ndarray, name: str, kind: str) -> np.ndarray:
    """Return an input in the session's type.

    Raises:
        Refused: numpy has no such type.
    """
    if array.dtype.kind != "f":
        return array
    if kind not in _FLOATS:
        raise Refused(f"input {name!r} is a {kind}, which cannot be fed from samples")
    return np.asarray(array, _FLOATS[kind])


def run(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> list[Any]:
    """Run once.

    Raises:
        Refused: A node fails.
    """
    try:
        outputs: list[Any] = session.run(None, feeds)
    except Exception as error:
        raise Refused(f"the model does not run: {error}") from error
    return outputs


def nodes_of(profile: Path) -> Counter[tuple[str, str]]:
    """Return how many nodes of each operator each provider ran, from a profile of one run."""
    events = json.loads(profile.read_text("utf-8"))
    said = [e["args"] for e in events if e.get("cat") == "Node" and "provider" in e["args"]]
    return Counter((each["provider"], each.get("op_name", "?")) for each in said)


def sum_by(counts: Counter[tuple[str, str]], index: int) -> Counter[str]:
    """Return the sums over all keys with one part in common."""
    total: Counter[str] = Counter()
    for key, count in counts.items():
        total[key[index]] += count
    return total


def placement(result: dict[str, Any]) -> str:
    """Return the lines on who ran what."""
    by = ", ".join(f"{name} {count}" for name, count in result["nodes"].items())
    rest = ", ".join(f"{name} {count}" for name, count in result["elsewhere"].items())
    return f"nodes: {by or 'none was run'}" + (f"\nleft to others: {rest}" if rest else "")


def timed(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the median time of a run."""
    shapes = {name: list(array.shape) for name, array in feeds.items()}
    return {**timing.timed(lambda: run(session, feeds)), "shapes": shapes, "how": HOW}


def timed_pair(
    reference: ort.InferenceSession, session: ort.InferenceSession, inputs: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Time both models in turn on one sample."""

    def once(of: ort.InferenceSession) -> Callable[[], object]:
        kinds = {each.name: each.type for each in of.get_inputs()}
        feeds = {name: as_fed(array, name, kinds[name]) for name, array in inputs.items()}
        return lambda: run(of, feeds)

    return timing.timed_pair(once(reference), once(session))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
