"""What a language model reads besides its tokens, for a prefill: one run without a past.

Inputs are known by the names that exporters give them (Optimum, onnxruntime-genai): a mask of
ones, positions from 0, an empty past, and the lengths that GroupQueryAttention reads
(``com.microsoft`` operator specification: ``seqlens_k`` is the length minus 1).
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from qcompile.samples import Array, Port

_BESIDE = frozenset({"attention_mask", "position_ids", "token_type_ids", "seqlens_k"})
"""Integer inputs that may have the shape of the tokens."""

_PAST = re.compile(r"past|cache", re.IGNORECASE)
_LENGTH = re.compile(r"past|seq|len|cache", re.IGNORECASE)


def tokens_input(inputs: Sequence[Port]) -> Port | None:
    """Return the input of the token ids ``(B, T)``: ``input_ids``, else the only one it can be."""
    named = [port for port in inputs if port.name == "input_ids"]
    others = [
        port
        for port in inputs
        if port.dtype.kind in "iu"
        and port.shape is not None
        and len(port.shape) == 2
        and port.name not in _BESIDE
    ]
    found = named or others
    return found[0] if len(found) == 1 else None


def logits_output(outputs: Sequence[Port]) -> Port | None:
    """Return the output of the next tokens' scores ``(B, T, V)``: ``logits``, else the only one.

    A known shape of another rank, or no floating-point type, rules an output out.
    """
    found = [port for port in outputs if port.dtype.kind == "f" and _may_be_logits(port)]
    named = [port for port in found if port.name == "logits"]
    chosen = named or found
    return chosen[0] if len(chosen) == 1 else None


def _may_be_logits(port: Port) -> bool:
    return len(port.shape) == 3 if port.shape else port.name == "logits"


def completed(feeds: Mapping[str, Array], inputs: Sequence[Port]) -> dict[str, Array]:
    """Return the feeds with the inputs that are missing and follow from the tokens.

    What does not follow from them stays missing; what is there is never replaced.

    Args:
        feeds: Input name to array; the tokens ``(B, T)`` are among them, or nothing is added.
        inputs: The model's inputs.
    """
    port = tokens_input(inputs)
    tokens = feeds.get(port.name) if port else None
    if tokens is None or tokens.ndim != 2:
        return dict(feeds)
    batch, length = tokens.shape
    missing = [port for port in inputs if port.name not in feeds]
    made = {port.name: _derived(port, batch, length) for port in missing}
    return {**feeds, **{name: array for name, array in made.items() if array is not None}}


def first_token(feeds: Mapping[str, Array], inputs: Sequence[Port]) -> dict[str, Array] | None:
    """Return the feeds of a run with the first token alone: what a step of generation computes.

    Args:
        feeds: Of a prefill.
        inputs: The model's inputs.

    Returns:
        None where the model reads no tokens, fixes their number, or needs what does not follow, and
        where there is one token only.
    """
    port = tokens_input(inputs)
    if port is None or port.name not in feeds or feeds[port.name].ndim != 2:
        return None
    if feeds[port.name].shape[1] == 1:
        return None
    if port.shape and isinstance(port.shape[1], int):
        return None
    made = completed({port.name: feeds[port.name][:, :1]}, inputs)
    return made if made.keys() == {port.name for port in inputs} else None


def _derived(port: Port, batch: int, length: int) -> Array | None:
    """Return the input's array in a prefill, or None where its name says nothing or shape forbids.

    Args:
        port: Any input but the tokens.
        batch: Rows of the tokens.
        length: Tokens of a row.
    """
    array: Array | None = None
    match port.name:
        case "attention_mask":
            array = np.ones((batch, length), port.dtype)
        case "token_type_ids":
            array = np.zeros((batch, length), port.dtype)
        case "position_ids":
            array = _positions(port, batch, length)
        case "seqlens_k":
            array = _same(port, batch, length - 1)
        case "total_sequence_length" | "total_seq_len":
            array = _same(port, batch, length)
        case "use_cache_branch":  # of a decoder with and without past in one file
            array = _same(port, batch, 0)
        case name if _PAST.search(name):
            array = _empty_past(port, batch)
    return array if array is not None and _fits(array, port) else None


def _positions(port: Port, batch: int, length: int) -> Array:
    row = np.arange(length).astype(port.dtype)
    return row if port.shape and len(port.shape) == 1 else np.tile(row, (batch, 1))


def _same(port: Port, batch: int, number: int) -> Array:
    shape = tuple(dim if isinstance(dim, int) else batch for dim in port.shape or ())
    return np.full(shape, number, port.dtype)


def _empty_past(port: Port, batch: int) -> Array | None:
    """Return keys or values of no tokens: ``(batch, heads, 0, head size)`` or any such layout."""
    shape = port.shape or ()
    if len(shape) < 3:
        return None
    unknown = [axis for axis, dim in enumerate(shape) if not isinstance(dim, int)]
    named = [axis for axis in unknown if _LENGTH.search(str(shape[axis] or ""))]
    past = (named or [axis for axis in unknown if axis > 0])[-1:]
    rows = [axis for axis in unknown if axis not in past]
    if not past or len(rows) > 1:
        return None
    sizes = [dim if isinstance(dim, int) else batch for dim in shape]
    sizes[past[0]] = 0
    return np.zeros(sizes, port.dtype)


def _fits(array: Array, port: Port) -> bool:
    if port.shape is None:
        return array.ndim < 3  # a scalar, or one of the usual arrays: ONNX Runtime does not tell
    return array.ndim == len(port.shape) and all(
        not isinstance(wanted, int) or wanted == size
        for wanted, size in zip(port.shape, array.shape, strict=True)
    )
