"""Whether samples fit a model's inputs, and whether they look like real data."""

from collections.abc import Sequence

import numpy as np

from qcompile.calibrate.noise import looks_like_noise
from qcompile.errors import DataError
from qcompile.progress import Progress
from qcompile.samples import Array, Feeds, Port, Samples

FEW = 32
"""Fewer samples than this are enough to run, but ranges found on them are shaky."""

_NOISE_SAMPLES = 16
_NOISE_BYTES = 1 << 26


def check_samples(samples: Samples, inputs: Sequence[Port], progress: Progress) -> None:
    """Read every sample once and check it; notice data that calibration had better not use.

    Raises:
        DataError: There is none, or one cannot be read or does not fit; names sample and input.
    """
    if not len(samples):
        raise DataError("there are no samples")
    if len(samples) < FEW:
        progress.notice(f"too few samples ({len(samples)}): ranges are shaky below {FEW}")
    first: list[Feeds] = []
    room = _NOISE_BYTES
    progress.step("check data", 0, len(samples))
    for index in range(len(samples)):
        feeds = samples[index]
        check_feeds(feeds, inputs, samples.name(index))
        room -= sum(array.nbytes for array in feeds.values())
        if not first or (len(first) < _NOISE_SAMPLES and room >= 0):
            first.append(feeds)
        progress.step("check data", index + 1, len(samples))
    if len(samples) > 1 and _all_equal(samples):
        progress.notice(f"all {len(samples)} samples are equal")
    for port in inputs:
        if looks_like_noise([feeds[port.name] for feeds in first]):
            progress.notice(f"input {port.name!r} looks like random noise; calibrate on real data")


def check_inputs(inputs: Sequence[Port]) -> None:
    """Check that samples can hold what the inputs take: numbers that numpy has a type for.

    Raises:
        DataError: One takes strings, or a type such as bfloat16.
    """
    for port in inputs:
        if port.dtype.kind not in "biufc":
            what = "strings" if port.dtype == object else str(port.dtype)
            raise DataError(
                f"input {port.name!r} takes {what}, which no sample can hold: build with "
                "--dynamic, which needs no samples"
            )


def check_feeds(feeds: Feeds, inputs: Sequence[Port], where: str) -> None:
    """Check one sample: names, element types, shapes, NaN and infinity.

    Raises:
        DataError: Names the sample (``where``), the input, what it should be and what it is.
    """
    check_names(feeds, inputs, where)
    for port in inputs:
        array = feeds[port.name]
        if array.dtype != port.dtype:
            raise DataError(_wrong_type(array, port, where))
        _check_shape(array, port, where)
        _check_finite(array, port, where)


def check_names(feeds: Feeds, inputs: Sequence[Port], where: str) -> None:
    """Check that a sample has an array for each input and no other.

    Raises:
        DataError: One is missing or too many.
    """
    wanted = [port.name for port in inputs]
    for name in wanted:
        if name not in feeds:
            found = ", ".join(sorted(feeds)) or "nothing"
            raise DataError(f"{where}: input {name!r} is missing; the sample has {found}")
    for name in feeds:
        if name not in wanted:
            needed = ", ".join(wanted)
            raise DataError(f"{where}: the model has no input {name!r}; it needs {needed}")


def cast(array: Array, port: Port, where: str) -> Array:
    """Return the array in the input's element type, where that loses no meaning.

    Floats become any other float type, integers any other integer type that holds their values.

    Raises:
        DataError: The types are of different kinds, or a value does not fit.
    """
    if array.dtype == port.dtype:
        return array
    kinds = {array.dtype.kind, port.dtype.kind}
    if kinds == {"f"}:
        with np.errstate(over="ignore"):  # becomes infinite, which check_feeds names
            return array.astype(port.dtype)
    if kinds <= {"i", "u"} and array.size:
        limits = np.iinfo(port.dtype.str)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise DataError(f"{where}: input {port.name!r} holds values beyond {port.dtype}")
    if kinds <= {"i", "u"}:
        return array.astype(port.dtype)
    raise DataError(_wrong_type(array, port, where))


def _wrong_type(array: Array, port: Port, where: str) -> str:
    hint = ""
    if port.dtype.kind == "f" and array.dtype.kind in "iu":
        hint = "; convert it as in training, scaling included"
    return f"{where}: input {port.name!r} must be {port.dtype}, not {array.dtype}{hint}"


def _check_shape(array: Array, port: Port, where: str) -> None:
    if port.shape is None:
        return
    fits = array.ndim == len(port.shape) and all(
        not isinstance(wanted, int) or wanted == found
        for wanted, found in zip(port.shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(d) if d is not None else "?" for d in port.shape)
        found = ", ".join(map(str, array.shape))
        hint = "; add the batch dimension" if array.ndim == len(port.shape) - 1 else ""
        raise DataError(
            f"{where}: input {port.name!r} must have shape ({wanted}), not ({found}){hint}"
        )


def _check_finite(array: Array, port: Port, where: str) -> None:
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(f"{where}: input {port.name!r} is {array[place]} at {list(place)}")


def _all_equal(samples: Samples) -> bool:
    first = samples.digest(0)
    return all(samples.digest(index) == first for index in range(1, len(samples)))
