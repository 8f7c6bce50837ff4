"""Figures of an engine: its outputs against those of the float model, its gates, its layers' types.

Travels in a bundle beside the script that uses it; needs numpy alone. The figures mean
what those of qcompile's report mean: SQNR is ``10 log10(sum r^2 / sum (r - t)^2)`` dB over all
elements of all samples, r of the float model, t of the engine.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import numpy as np

STORED = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "uint16",
    "FP8": "uint8",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's type of a tensor to numpy's type of the bytes that it has on the device."""


def encoded(array: np.ndarray, kind: str) -> np.ndarray:
    """Return an input as the engine stores it; integers keep their type, int64 too.

    Args:
        array: Any shape; real numbers for a floating-point input.
        kind: TensorRT's type, a key of ``STORED``.

    Raises:
        ValueError: The values have no such form.
    """
    if kind == "BF16":
        bits = np.asarray(array, np.float32, order="C").view(np.uint32)
        even = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = (bits + np.uint32(0x7FFF) + even) >> np.uint32(16)
        return np.asarray(np.where(np.isnan(array), 0x7FC0, rounded), np.uint16)
    if kind == "FP8" or kind not in STORED:
        raise ValueError(f"an input of type {kind} cannot be fed from samples")
    wanted = np.dtype(STORED[kind])
    if array.dtype != wanted and (array.dtype.kind != "f" or wanted.kind != "f"):
        raise ValueError(f"the engine wants {wanted}, the samples have {array.dtype}")
    return np.asarray(array, wanted, order="C")


def decoded(stored: np.ndarray, kind: str) -> np.ndarray:
    """Return an output as numbers: halves, bfloat16 and FP8 become float32, all others stay."""
    if kind == "BF16":
        return np.asarray(stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "FP8":
        return np.asarray(_E4M3[stored])
    return stored.astype(np.float32) if kind == "HALF" else stored


def _e4m3_values() -> np.ndarray:
    """Return the 256 values of float8 E4M3FN: exponent bias 7, no infinity, S.1111.111 is NaN."""
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, (codes & 7) / 8
    size = np.where(exponent == 0, fraction * 2.0**-6, (1 + fraction) * 2.0 ** (exponent - 7.0))
    size[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, size, -size).astype(np.float32)


_E4M3 = _e4m3_values()


class Output:
    """Collects how far one output is from the float model's, sample by sample."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dtype = ""
        self.sums = np.zeros(4)  # signal, energy, product, noise
        self.largest = 0.0
        self.broken = self.mismatched = self.skipped = 0
        self.equal = self.elements = 0
        self.real = False
        self.agreed = self.decisions = 0

    def add(self, reference: np.ndarray, test: np.ndarray, inputs: dict[str, np.ndarray]) -> None:
        """Add one sample.

        Args:
            reference: The float model's output.
            test: The engine's, as ``decoded`` gives it.
            inputs: What was fed, to tell token logits by.
        """
        self.dtype = str(reference.dtype)
        if reference.shape != test.shape:
            self.mismatched += 1
        elif reference.dtype.kind != "f" or test.dtype.kind != "f":
            self.equal += int(np.count_nonzero(reference == test))
            self.elements += reference.size
        else:
            self._add_real(reference.astype(np.float64).ravel(), test.astype(np.float64).ravel())
            if holds_classes(reference, inputs):
                self._add_decisions(reference, test)

    def _add_real(self, r: np.ndarray, t: np.ndarray) -> None:
        self.real = True
        finite = np.isfinite(r) & np.isfinite(t)
        same = ~finite & ((r == t) | (np.isnan(r) & np.isnan(t)))
        self.skipped += int(same.sum())
        self.broken += int((~finite & ~same).sum())
        r, t = r[finite], t[finite]
        error = r - t
        self.sums += (r @ r, t @ t, r @ t, error @ error)
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))

    def _add_decisions(self, reference: np.ndarray, test: np.ndarray) -> None:
        """Count the positions whose best class is the same; a NaN decides nothing."""
        best = reference.argmax(axis=-1) == test.argmax(axis=-1)
        self.agreed += int((best & ~np.isnan(test).any(axis=-1)).sum())
        self.decisions += best.size

    def agreements(self) -> list[dict[str, Any]]:
        """Return how often both models decide alike, where the output holds class scores."""
        if not self.decisions:
            return []
        share = self.agreed / self.decisions
        return [{"name": "top-1", "output": self.name, "share": share, "count": self.decisions}]

    def figures(self) -> dict[str, Any]:
        """Return the figures, None where one has no finite value; ``note`` says why."""
        signal, energy, product, noise = map(float, self.sums)
        measured = self.real and not self.mismatched and not self.broken
        sqnr = cosine = relative = None
        if measured and noise == 0:
            cosine, relative = 1.0, 0.0
        elif measured and signal > 0:
            sqnr, relative = 10 * math.log10(signal / noise), math.sqrt(noise / signal)
            if energy > 0:
                cosine = max(-1.0, min(1.0, product / math.sqrt(signal) / math.sqrt(energy)))
        same = not (self.largest or self.broken or self.mismatched or self.equal < self.elements)
        return {
            "name": self.name,
            "dtype": self.dtype,
            "sqnr_db": sqnr,
            "cosine": cosine,
            "max_abs_error": self.largest if measured else None,
            "relative_l2": relative,
            "equal": self.equal / self.elements if self.elements else None,
            "identical": same,
            "broken": self.broken,
            "mismatched": self.mismatched,
            "note": self._note(identical=same, signal=signal),
        }

    def _note(self, *, identical: bool, signal: float) -> str:
        if self.mismatched:
            return f"shapes differ in {self.mismatched} sample(s)"
        if self.broken:
            return f"{self.broken} elements are NaN or infinite in one model only"
        if identical:
            return "identical"
        if self.real and signal == 0:
            return "the float model gives only zeros"
        if self.skipped:
            return f"{self.skipped} elements are NaN or infinite in both models, left out"
        return ""


def holds_classes(scores: np.ndarray, inputs: dict[str, np.ndarray]) -> bool:
    """Return whether an output holds class scores, along its last axis.

    They are ``(N, C)``, or ``(N, T, C)`` next to an integer input ``(N, T)``; C is at least 2.
    """
    shape = scores.shape
    if len(shape) not in {2, 3} or shape[-1] < 2 or not scores.size:
        return False
    tokens = any(f.shape == shape[:2] and f.dtype.kind in "iu" for f in inputs.values())
    return len(shape) == 2 or tokens


JUDGED = ("min_sqnr", "min_agreement", "min_speedup")
"""Gates that samples without labels can judge."""


def add_figures(request: dict[str, Any], outputs: list[Output], result: dict[str, Any]) -> None:
    """Add to a result the figures of its outputs, its gates and the names of others.

    Args:
        request: What the description says.
        outputs: With all samples added.
        result: Has ``speed`` where both models were timed.
    """
    result["samples"] = request["samples"]
    if request["samples"]:
        result["outputs"] = [output.figures() for output in outputs]
        result["agreements"] = [each for output in outputs for each in output.agreements()]
    gates = {name: limit for name, limit in request["gates"].items() if limit is not None}
    result["gates"] = judged(gates, outputs, result.get("speed"))
    result["not_judged"] = sorted(set(gates) - set(JUDGED))


def judged(
    gates: dict[str, float], outputs: list[Output], speed: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Judge the gates that samples without labels can judge (``JUDGED``), and no others.

    Accuracy is judged on the worst output. What cannot be measured fails.

    Args:
        gates: Name to limit, in dB, 0 to 1, and float time over engine time.
        outputs: With all samples added.
        speed: Both models timed in turn.
    """
    results = []
    if "min_sqnr" in gates:
        floats = (o for o in outputs if not o.elements and (o.real or o.mismatched))
        worst = min((o.figures() for o in floats), key=_decibels, default=None)
        results.append(_sqnr_gate(gates["min_sqnr"], worst))
    if "min_agreement" in gates:
        shares = [agreement for output in outputs for agreement in output.agreements()]
        lowest = min(shares, key=lambda agreement: agreement["share"], default=None)
        results.append(_agreement_gate(gates["min_agreement"], lowest))
    if "min_speedup" in gates:
        results.append(_speedup_gate(gates["min_speedup"], speed))
    return results


def _sqnr_gate(wanted: float, worst: dict[str, Any] | None) -> dict[str, Any]:
    result = {"name": "min-sqnr", "wanted": wanted, "measured": None, "passed": False}
    if worst is None:
        return {**result, "note": "no floating-point output was compared"}
    note = f"worst output {worst['name']!r}" + (f": {worst['note']}" if worst["note"] else "")
    passed = _decibels(worst) >= wanted
    return {**result, "measured": worst["sqnr_db"], "passed": passed, "note": note}


def _agreement_gate(wanted: float, lowest: dict[str, Any] | None) -> dict[str, Any]:
    result = {"name": "min-agreement", "wanted": wanted, "measured": None, "passed": False}
    if lowest is None:
        return {**result, "note": "no sample with class scores was compared"}
    note = f"top-1 of output {lowest['output']!r}, {lowest['count']} decisions"
    passed = lowest["share"] >= wanted
    return {**result, "measured": lowest["share"], "passed": passed, "note": note}


def _speedup_gate(wanted: float, speed: dict[str, Any] | None) -> dict[str, Any]:
    result = {"name": "min-speedup", "wanted": wanted, "measured": None, "passed": False}
    if speed is None:
        return {**result, "note": "nothing was timed, for there are no samples"}
    low, high = speed["interval"]
    note = f"{_times(speed)}; 95 % interval {low:.2f} to {high:.2f}"
    passed = speed["ratio"] >= wanted
    return {**result, "measured": speed["ratio"], "passed": passed, "note": note}


def _times(speed: dict[str, Any]) -> str:
    times = f"{speed['float_ms']:.4f} ms float to {speed['engine_ms']:.4f} ms"
    return f"{times}, {speed['pairs']} pairs"


def _decibels(figures: dict[str, Any]) -> float:
    if figures["identical"]:
        return math.inf
    return -math.inf if figures["sqnr_db"] is None else float(figures["sqnr_db"])


_TYPES = (
    ("fp8", r"fp8(e4m3)?|float8(e4m3)?(fn)?"),
    ("fp4", r"fp4(e2m1)?|float4(e2m1)?"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half|float16"),
    ("fp32", r"fp32|float|float32"),
    ("int4", r"int4"),
    ("uint8", r"uint8"),
    ("int8", r"int8"),
    ("int32", r"int32"),
    ("int64", r"int64"),
    ("bool", r"bool"),
)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f]|$)")


def layers_of(text: str) -> list[dict[str, Any]]:
    """Return the layers of an engine from what TensorRT's EngineInspector says of it.

    TensorRT 10 writes a sentence (``Format/Datatype``: "Row major linear FP16 format"), 11 a field
    ``Datatype``. Weights are ``Constants`` of a layer, or its ``Weights`` with a ``Type``.

    Returns:
        Each with ``name``, ``kind``, ``nodes`` (names of ONNX nodes), ``tactic``, and ``inputs``,
        ``constants`` and ``outputs``: lists of ``name``, ``dtype`` (``int8`` and so on; one that is
        not known as TensorRT says it) and ``shape``.

    Raises:
        ValueError: The text is not of a form that is known.
    """
    try:
        return [_layer(layer) for layer in json.loads(text)["Layers"]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        message = f"the EngineInspector's answer has a form that is not known ({error!r})"
        raise ValueError(message) from error


def _layer(layer: str | dict[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {"Name": layer} if isinstance(layer, str) else layer
    weights = said.get("Weights") or {}
    constants = [*said.get("Constants", []), *([weights] if weights.get("Count") else [])]
    return {
        "name": said["Name"],
        "kind": said.get("LayerType", ""),
        "nodes": list(dict.fromkeys(_NODE.findall(said.get("Metadata", "")))),
        "inputs": [_tensor(tensor) for tensor in said.get("Inputs", [])],
        "constants": [_tensor(tensor) for tensor in constants],
        "outputs": [_tensor(tensor) for tensor in said.get("Outputs", [])],
        "tactic": said.get("TacticName", ""),
    }


def _tensor(said: dict[str, Any]) -> dict[str, Any]:
    words = str(said.get("Datatype") or said.get("Type") or said["Format/Datatype"])
    shape = [int(size) for size in said.get("Dimensions", [])]
    return {"name": said.get("Name", "weights"), "dtype": _type(words), "shape": shape}


def _type(said: str) -> str:
    words = re.findall(r"[a-z0-9]+", said.lower())
    for name, pattern in _TYPES:
        if any(re.fullmatch(pattern, word) for word in words):
            return name
    return said


def told(samples: int, result: dict[str, Any]) -> str:
    """Return the lines for the terminal, with the layers of the engine first."""
    read = [sorted({tensor["dtype"] for tensor in layer["inputs"]}) for layer in result["layers"]]
    kinds = Counter("/".join(types) or "nothing" for types in read)
    counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    layers = f"layers by the types they read: {counts or 'none are told'}"
    return f"{layers}\n{told_figures(samples, result)}"


def told_figures(samples: int, result: dict[str, Any]) -> str:
    """Return the lines on outputs, time and gates."""
    lines = []
    if samples:
        rows = [["output", "SQNR dB", "cosine", "max error", "note"]]
        for each in result["outputs"]:
            sizes = [_shown(each[key], 6) for key in ("cosine", "max_abs_error")]
            rows.append([each["name"], _shown(each["sqnr_db"], 2), *sizes, each["note"]])
        lines = [f"{samples} samples against the float model:", *_table(rows)]
        for each in result["agreements"]:
            share = f"{each['share']:.4f} of {each['count']} decisions agree"
            lines.append(f"top-1 of {each['output']!r}: {share}")
        timing = result["timing"]
        sizes = [f"{name} {'x'.join(map(str, n))}" for name, n in timing["shapes"].items()]
        time = (
            f"{timing['median_ms']:.4f} ms, median of {timing['runs']} runs at {', '.join(sizes)}"
        )
        lines.append(f"{time} ({timing['how']})")
        if "speed" in result:
            lines.append(f"{result['speed']['ratio']:.2f}x: {_times(result['speed'])}")
    else:
        lines.append("the bundle holds no samples: the engine was loaded, not compared")
    for gate in result["gates"]:
        word = "kept" if gate["passed"] else "MISSED"
        measured = f"{_shown(gate['measured'], 4)} ({gate['note']})"
        lines.append(f"gate {gate['name']} {gate['wanted']}: {word}, {measured}")
    for name in result["not_judged"]:
        why = "not judged here, it takes labels"
        lines.append(f"gate {name.replace('_', '-')}: {why}")
    return "\n".join(lines)


def _table(rows: list[list[str]]) -> list[str]:
    """Return rows of words as lines with columns that stand below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(w.ljust(n) for w, n in zip(row, widths)) for row in rows]  # noqa: B905
    return [line.rstrip() for line in lines]


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
