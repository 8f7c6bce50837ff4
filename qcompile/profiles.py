"""Shapes that an engine must take: as given, or those that the samples have."""

from collections import Counter
from collections.abc import Sequence

from qcompile.data import Split
from qcompile.errors import RecipeError
from qcompile.frontend import Loaded
from qcompile.progress import Progress
from qcompile.samples import Port, Samples
from qcompile.targets.profiles import Profile, check_profiles, parse_profiles

LOOKED_AT = 256
"""Samples whose shapes are read, at most, of each source."""

Shape = tuple[int, ...]


def profiles_of(
    shapes: str | None, loaded: Loaded, data: Split, progress: Progress
) -> dict[str, Profile]:
    """Return the least, best and largest shape of each input with dynamic axes.

    Args:
        shapes: As in ``--shapes``; None derives them from the samples.
        loaded: Has the inputs.
        data: The samples.
        progress: Hears what was derived.

    Raises:
        RecipeError: A shape contradicts the model, or there is neither a shape nor a sample.
    """
    dynamic = {port.name: port for port in loaded.inputs if not _is_fixed(port)}
    if shapes is not None:
        given = parse_profiles(shapes)
        check_profiles(given, {port.name: port.shape for port in loaded.inputs})
        for name in dynamic.keys() - given.keys():
            raise RecipeError(f"--shapes: input {name} has dynamic axes: give its shapes, too")
        return {name: found for name, found in given.items() if name in dynamic}
    if not dynamic:
        return {}
    seen = _seen(list(dynamic), [s for s in (data.calibration, data.evaluation) if s is not None])
    if not all(seen.values()):
        raise RecipeError(
            f"input {next(iter(dynamic))} has dynamic axes: give --shapes NAME:MIN,BEST,MAX, or "
            "samples to take the shapes from"
        )
    found = {name: _profile(counts) for name, counts in seen.items()}
    told = " ".join(f"{name}:{_text(profile)}" for name, profile in found.items())
    progress.notice(f"the engine takes the shapes that the samples have: --shapes {told!r}")
    return found


def _is_fixed(port: Port) -> bool:
    """Say whether every size is known; ONNX Runtime gives scalars no shape."""
    return port.shape is None or all(isinstance(dim, int) for dim in port.shape)


def _seen(names: Sequence[str], sources: Sequence[Samples]) -> dict[str, Counter[Shape]]:
    found: dict[str, Counter[Shape]] = {name: Counter() for name in names}
    for samples in sources:
        for index in range(min(len(samples), LOOKED_AT)):
            feeds = samples[index]
            for name in names:
                found[name][feeds[name].shape] += 1
    return found


def _profile(counts: Counter[Shape]) -> Profile:
    """Return the bounds of the shapes that were seen; the best is the most frequent."""
    shapes = list(counts)
    least = tuple(min(dims) for dims in zip(*shapes, strict=True))
    most = tuple(max(dims) for dims in zip(*shapes, strict=True))
    return Profile(least, counts.most_common(1)[0][0], most)


def _text(profile: Profile) -> str:
    return ",".join("x".join(map(str, shape)) for shape in profile)
