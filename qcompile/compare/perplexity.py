"""Perplexity of language models: how surprised a model is by the next token of real text.

``exp`` of the mean negative log-likelihood of each token given those before it in its window,
computed from the logits in float64 (Jelinek et al. 1977; the usual figure for WikiText-2). The
units of its intervals are windows, for tokens of one window are not independent.

Tokens are not judged where ``attention_mask`` is 0. A label of the tokens' shape says what comes
next at each position, below 0 where that is not judged; without labels, the next token does.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qcompile.compare.metric import Metric, Outputs, load_metric
from qcompile.runtime.prefill import logits_output, tokens_input
from qcompile.samples import Array, Feeds, Port

NAME = "perplexity"

_CHUNK = 1 << 22
"""Elements of the logits that are widened at once."""

Sums = tuple[float, int]
"""Negative log-likelihood of a sample's tokens, in nats, and their number."""


def perplexity_metric(
    inputs: Sequence[Port], outputs: Sequence[Port], feeds: Feeds
) -> Metric | None:
    """Return the metric where a model predicts tokens, else None.

    Args:
        inputs: The model's; one must hold token ids ``(B, T)``.
        outputs: The model's; one must hold logits ``(B, T, V)``.
        feeds: A sample; its tokens must be among those that the logits are for, which tells a
            language model from one that puts each token into one of a few classes.
    """
    tokens, logits = tokens_input(inputs), logits_output(outputs)
    if tokens is None or logits is None or tokens.name not in feeds:
        return None
    classes = logits.shape[-1] if logits.shape else None
    if isinstance(classes, int) and int(feeds[tokens.name].max(initial=0)) >= classes:
        return None
    return load_metric(NAME)


def perplexity(outputs: Outputs, label: Array | None, feeds: Feeds) -> Sums:
    """Return the summed negative log-likelihood of a sample's tokens, and their number.

    Args:
        outputs: Has the logits ``(B, T, V)``.
        label: The token behind each position, ``(B, T)`` or ``(T,)``, or None.
        feeds: Has the tokens ``(B, T)``.

    Raises:
        ValueError: There are no logits, no tokens, or a token that the logits lack.
    """
    tokens = _tokens(feeds)
    logits = _logits(outputs, tokens)
    if label is not None and label.dtype.kind in "iu" and label.size == tokens.size:
        following = label.reshape(tokens.shape).astype(np.int64)
    else:
        following = np.full(tokens.shape, -1, np.int64)
        following[:, :-1] = tokens[:, 1:]
    mask = feeds.get("attention_mask")
    if mask is not None and mask.shape == tokens.shape:
        real = mask.astype(np.bool_)
        following[~real] = -1
        following[:, :-1][~real[:, 1:]] = -1
    rows, expected = logits.reshape(-1, logits.shape[2]), following.reshape(-1)
    judged = np.flatnonzero(expected >= 0)
    if judged.size and int(expected.max()) >= rows.shape[1]:
        raise ValueError(f"token {expected.max()} is beyond the {rows.shape[1]} of the logits")
    return _loss(rows, expected, judged), judged.size


def aggregate(sums: list[Sums]) -> float:
    """Return the perplexity of several samples.

    Args:
        sums: What ``perplexity`` returned for each.

    Returns:
        At least 1, in tokens; NaN where no token was judged.
    """
    count = sum(number for _, number in sums)
    if not count:
        return math.nan
    with np.errstate(over="ignore"):  # infinity is the answer
        return float(np.exp(math.fsum(loss for loss, _ in sums) / count))


perplexity.aggregate = aggregate  # type: ignore[attr-defined]
perplexity.lower_is_better = True  # type: ignore[attr-defined]


def _loss(rows: Array, expected: npt.NDArray[np.int64], judged: npt.NDArray[np.intp]) -> float:
    """Return the sum of ``log sum exp(row) - row[expected]`` over the judged rows."""
    total = 0.0
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, judged.size, step):
        at = judged[start : start + step]
        scores = rows[at].astype(np.float64)
        scores -= scores.max(axis=1, keepdims=True)
        chosen = scores[np.arange(at.size), expected[at]]
        total += float((np.log(np.exp(scores).sum(axis=1)) - chosen).sum())
    return total


def _tokens(feeds: Feeds) -> Array:
    if "input_ids" in feeds:
        return feeds["input_ids"]
    ports = [Port(name, array.dtype, array.shape) for name, array in feeds.items()]
    port = tokens_input(ports)
    if port is None:
        raise ValueError("the model has no input of token ids (B, T)")
    return feeds[port.name]


def _logits(outputs: Outputs, tokens: Array) -> Array:
    ports = [Port(name, array.dtype, array.shape) for name, array in outputs.items()]
    port = logits_output(ports)
    if port is None or outputs[port.name].shape[:2] != tokens.shape:
        raise ValueError("the model has no output of logits (B, T, V) for its tokens")
    return outputs[port.name]
