"""Weights in few bits: perplexity, layer errors, cost and speed, ONNX Runtime's quantizer beside.

All engines compute with float activations (accuracy level 0) but where a row says otherwise, so
that rows differ in their codes alone. The share of plain rounding's loss, at the same bits and
group, that an algorithm regains is given for each text, and for all tokens of all texts together:
the goals are judged there, where there are more of them to tell engines apart.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompile.runtime.timing import Timing, time_pair
from tests.assets import asset
from tests.benchmarks import engines, suite
from tests.benchmarks.peers import Feeds
from tests.benchmarks.table import Table

MODELS = ("textlm5m", "stories260k")
FORMATS = ((4, 32), (4, 128), (3, 32), (3, 128))
PREFILL = 256
JUDGED = 8
"""Samples on which layers are compared."""
SECONDS = 2.0

PLAIN = "qcompile RTN plain"
WANTED = {"qcompile GPTQ": 0.5, "qcompile AWQ": 0.25}
"""Share of RTN's loss to regain at least (issue 3, section 3)."""
BEST = "qcompile AWQ+GPTQ"
"""Is to be the best of all."""


@dataclass(frozen=True)
class Run:
    """One way to quantize: who does it, and options of ``qcompile.recipe.Weights``."""

    tool: str
    options: dict[str, Any] = field(default_factory=dict)


RUNS = {
    "ORT RTN": Run("ORT", {"algorithm": "rtn"}),
    "ORT RTN asymmetric": Run("ORT", {"algorithm": "rtn", "asymmetric": True}),
    "ORT RTN level 4": Run("ORT", {"algorithm": "rtn", "accuracy_level": 4}),
    "ORT GPTQ": Run("ORT", {"algorithm": "gptq"}),
    PLAIN: Run("qcompile", {"algorithm": "rtn", "search": False}),
    "qcompile RTN": Run("qcompile", {"algorithm": "rtn"}),
    "qcompile GPTQ": Run("qcompile", {"algorithm": "gptq"}),
    "qcompile AWQ": Run("qcompile", {"algorithm": "awq"}),
    BEST: Run("qcompile", {"algorithm": "awq+gptq"}),
    "qcompile auto": Run("qcompile", {"algorithm": "auto"}),
    "qcompile auto, own level": Run("qcompile", {"algorithm": "auto", "accuracy_level": None}),
}
PEER_BITS = (4,)


@dataclass(frozen=True)
class Found:
    """What was measured of one engine.

    Attributes:
        perplexity: Of each text.
        error: Mean relative L2 error of the layers' outputs, all before them quantized too.
        seconds: To quantize.
        peak: Memory of that process in MB.
        size: Of the files in MB.
        one: Float time over engine time for one token.
        prefill: The same for ``PREFILL`` tokens.
    """

    perplexity: Mapping[str, float]
    error: float
    seconds: float
    peak: float
    size: float
    one: Timing
    prefill: Timing


def measure(folder: Path, names: Sequence[str] = MODELS) -> Table:
    """Quantize in all ways and formats, score; return the table."""
    columns = ["model", "bits", "group", "engine", "perplexity", "regained", "all", "want", ""]
    costs = ["layer error", "s", "peak MB", "file MB", "one token", f"prefill {PREFILL}"]
    table = Table("Weights in few bits", [*columns, *costs])
    for name in names:
        source = suite.model_path(name)
        data = engines.sample_folder(suite.calibration(name), folder / f"{name}-calib")
        float_loss, tokens = perplexity(name, source)
        table.add(
            name, "32", "", "FP", _texts(float_loss), *[""] * 7, f"{_size(source):.1f}", *"--"
        )
        for bits, group in FORMATS:
            found = {
                label: _measured(name, label, run, bits, group, data, folder)
                for label, run in RUNS.items()
                if run.tool != "ORT" or bits in PEER_BITS
            }
            losses = {label: one.perplexity for label, one in found.items()}
            each = [regained(losses, float_loss, {text: 1}) for text in tokens]
            shares = regained(losses, float_loss, tokens)
            for label, one in found.items():
                head = [name, str(bits), str(group), label, _texts(one.perplexity)]
                head += [" / ".join(f"{text[label]:.0%}" for text in each), f"{shares[label]:.0%}"]
                table.add(*head, *_verdict(label, shares), *_costs(one))
    return table


def regained(
    losses: Mapping[str, Mapping[str, float]],
    reference: Mapping[str, float],
    tokens: Mapping[str, int],
) -> dict[str, float]:
    """Return what share of plain rounding's rise in log-perplexity each engine avoids.

    Args:
        losses: Perplexity by text, for each engine.
        reference: The same of the float model.
        tokens: How much each text counts; one that is not there does not.
    """

    def rise(found: Mapping[str, float]) -> float:
        return sum(n * math.log(found[text] / reference[text]) for text, n in tokens.items())

    lost = rise(losses[PLAIN])
    return {label: 1 - rise(found) / lost for label, found in losses.items()}


def perplexity(name: str, engine: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Return the perplexity of each text, by the assets' own scorer, and how many tokens it has."""
    score = suite.tool("score")
    scores = score.score(name, score.ort_run(str(engine)))
    if name != "textlm5m":
        return {"": float(scores["ppl"])}, {"": 1}
    texts = ("wikitext2", "shakespeare")
    found = {text: float(scores[f"ppl_{text}"]) for text in texts}
    return found, {text: int(scores[f"tokens_{text}"]) for text in texts}


def layer_error(source: Path, engine: Path, feeds: Sequence[Feeds]) -> float:
    """Return the mean over layers of ``|y - y'| / |y|`` at the quantized layers' outputs.

    Layers are found by the names of their outputs, which all the tools keep. Those whose output is
    a factor of what another layer reads are left out for all tools: AWQ divides such a factor.
    """
    exact = onnx.load(source)
    outputs = _quantized_outputs(onnx.load(engine)) & _all_outputs(exact) - _factors(exact)
    if not outputs:
        raise ValueError(f"{engine}: no quantized layer kept the name of its output")
    names = sorted(outputs)
    runs = [_tapped(path, names) for path in (source, engine)]
    error, power = np.zeros(len(names)), np.zeros(len(names))
    for feed in feeds:
        for index, (y, other) in enumerate(zip(*(run(feed) for run in runs), strict=True)):
            error[index] += np.square(y - other, dtype=np.float64).sum()
            power[index] += np.square(y, dtype=np.float64).sum()
    return float(np.sqrt(error / power).mean())


def _quantized_outputs(model: onnx.ModelProto) -> set[str]:
    blocks = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
        or (node.op_type in ("MatMul", "Gemm") and node.input[1] in blocks)
    }


def _factors(model: onnx.ModelProto) -> set[str]:
    """Return the outputs of layers that reach another one through products alone."""
    makers = {name: node for node in model.graph.node for name in node.output}
    linear = ("MatMul", "Gemm")
    names = [node.input[0] for node in model.graph.node if node.op_type in linear]
    found: set[str] = set()
    while names:
        name = names.pop()
        maker = makers.get(name)
        if maker is not None and maker.op_type in linear:
            found.add(name)
        elif maker is not None and maker.op_type == "Mul":
            names.extend(maker.input)
    return found


def _all_outputs(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output}


def _tapped(path: Path, names: Sequence[str]) -> Any:
    import onnxruntime as ort

    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, dict(feed))


def _measured(
    name: str, label: str, run: Run, bits: int, group: int, data: Path, folder: Path
) -> Found:
    source = suite.model_path(name)
    out = folder / f"{name}-{bits}-{group}-{label.replace(' ', '-').replace(',', '')}"
    options = {"bits": bits, "group_size": group, "accuracy_level": 0, **run.options}
    took = _alone(run.tool, options, source, data, out)
    engine = out / "model.onnx"
    one, prefill = (
        time_pair(source, engine, _tokens(name, length), seconds=SECONDS) for length in (1, PREFILL)
    )
    return Found(
        perplexity=perplexity(name, engine)[0],
        error=layer_error(source, engine, evaluation(name)[:JUDGED]),
        seconds=took["seconds"],
        peak=took["peak"],
        size=_size(engine),
        one=one,
        prefill=prefill,
    )


def _alone(
    tool: str, options: dict[str, Any], model: Path, data: Path, out: Path
) -> dict[str, float]:
    """Quantize in a process of its own; a peer's result of an earlier run is kept."""
    kept = out / "took.json"
    if tool == "ORT" and kept.exists():
        return dict(json.loads(kept.read_text("utf-8")))
    script = "tests.benchmarks.weights_once"
    command = [sys.executable, "-m", script, tool, json.dumps(options), str(model), str(data)]
    done = subprocess.run([*command, str(out)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tool} {options}: {done.stderr[-2000:]}")
    last = done.stdout.splitlines()[-1]
    kept.write_text(last, "utf-8")
    return dict(json.loads(last))


def evaluation(name: str) -> list[Feeds]:
    """Return the evaluation samples of the first text."""
    file, key = ("textlm", "wikitext2") if name == "textlm5m" else ("tinystories_tok512", "ids")
    with np.load(asset("data", f"{file}.npz"), allow_pickle=False) as data:
        ids = data[key].astype(np.int64)
        lengths = data["length"] if "length" in data else [ids.shape[1]] * len(ids)
    return [{"input_ids": row[None, :n]} for row, n in zip(ids, lengths, strict=True)]


def _tokens(name: str, length: int) -> Feeds:
    ids = np.concatenate([feed["input_ids"] for feed in suite.calibration(name)], axis=1)
    return {"input_ids": np.ascontiguousarray(ids[:, :length])}


def _size(model: Path) -> float:
    files = [model, model.with_name(f"{model.name}.data")]
    return sum(file.stat().st_size for file in files if file.exists()) / 1e6


def _verdict(label: str, shares: Mapping[str, float]) -> tuple[str, str]:
    if label in WANTED:
        want, reached = f">= {WANTED[label]:.0%}", shares[label] >= WANTED[label]
    elif label == BEST:
        others = [share for other, share in shares.items() if "auto" not in other]
        want, reached = "best", shares[label] >= max(others)
    else:
        return "", ""
    return want, "pass" if reached else "**miss**"


def _texts(found: Mapping[str, float]) -> str:
    return " / ".join(f"{value:.3f}" for value in found.values())


def _costs(found: Found) -> list[str]:
    speeds = [f"{timing.ratio:.2f}x" for timing in (found.one, found.prefill)]
    costs = [f"{found.error:.4f}", f"{found.seconds:.1f}", f"{found.peak:.0f}"]
    return [*costs, f"{found.size:.1f}", *speeds]
