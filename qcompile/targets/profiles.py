"""Shapes that an engine is built for: of each dynamic input the least, the usual and the largest.

The text is that of ``--shapes``: ``name:1x3x32x32,8x3x32x32,64x3x32x32``, several inputs separated
by spaces or ``;``. Names may hold ``:`` and ``/``: the shapes stand behind the last colon.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qcompile.errors import RecipeError
from qcompile.samples import Feeds

Shape = tuple[int, ...]

MOST_ELEMENTS = 1 << 40
"""Of one shape: what is above is a slip, no device holds it."""

_FORM = "name:MIN,OPT,MAX as in x:1x3x32x32,8x3x32x32,64x3x32x32"


class Profile(NamedTuple):
    """The shapes of one input, all of one rank; no dimension shrinks from min to opt to max."""

    min: Shape
    opt: Shape
    max: Shape


def shown(shape: Shape) -> str:
    """Return a shape as ``--shapes`` and trtexec write it: 1x3x32x32."""
    return "x".join(map(str, shape))


def fits(feeds: Feeds, profiles: Mapping[str, Profile]) -> bool:
    """Return whether an engine with these profiles takes a sample."""
    return all(
        len(feeds[name].shape) == len(profile.min)
        and all(
            least <= size <= most
            for least, size, most in zip(profile.min, feeds[name].shape, profile.max, strict=True)
        )
        for name, profile in profiles.items()
    )


def parse_profiles(text: str) -> dict[str, Profile]:
    """Return the profile of each input that the text of ``--shapes`` names.

    Raises:
        RecipeError: The text is malformed, names an input twice, or gives shapes that contradict
            each other.
    """
    profiles: dict[str, Profile] = {}
    for part in re.split(r"[;\s]+", text.strip(" \t\n;")):
        name, colon, shapes = part.rpartition(":")
        if not (name and colon and shapes):
            raise RecipeError(f"--shapes {part!r}: write {_FORM}")
        if name in profiles:
            raise RecipeError(f"--shapes: input {name} is given twice")
        profiles[name] = _profile(name, shapes)
    return profiles


def _profile(name: str, text: str) -> Profile:
    shapes = [_shape(name, part) for part in text.split(",")]
    if len(shapes) != 3:
        raise RecipeError(f"--shapes {name}: {len(shapes)} shapes, not three: write {_FORM}")
    profile = Profile(*shapes)
    if len({len(shape) for shape in profile}) > 1:
        raise RecipeError(f"--shapes {name}: min, opt and max differ in rank: {text}")
    for axis, (least, usual, most) in enumerate(zip(*profile, strict=True)):
        if not least <= usual <= most:
            raise RecipeError(
                f"--shapes {name}: dimension {axis} is {least}, {usual}, {most}; it must not "
                "shrink from min to opt to max"
            )
    return profile


def _shape(name: str, text: str) -> Shape:
    if not re.fullmatch(r"[0-9]{1,12}(x[0-9]{1,12})*", text, re.ASCII):
        raise RecipeError(f"--shapes {name}: {text!r} is no shape: write {_FORM}")
    shape = tuple(int(part) for part in text.split("x"))
    if math.prod(shape) > MOST_ELEMENTS:
        raise RecipeError(f"--shapes {name}: {text} has more elements than any device holds")
    return shape


def check_profiles(
    profiles: Mapping[str, Profile], inputs: Mapping[str, Sequence[int | str | None] | None]
) -> None:
    """Check that profiles fit the inputs of a model.

    Args:
        profiles: By input.
        inputs: Name to dimensions, whole numbers where they are fixed; None where not known.

    Raises:
        RecipeError: A profile names no input, or contradicts what the model fixes.
    """
    for name, profile in profiles.items():
        if name not in inputs:
            raise RecipeError(f"--shapes {name}: no such input; there are: {', '.join(inputs)}")
        dims = inputs[name]
        if dims is not None:
            _check_fits(name, profile, dims)


def _check_fits(name: str, profile: Profile, dims: Sequence[int | str | None]) -> None:
    fixed = "x".join(str(dim if dim is not None else "?") for dim in dims)
    for shape in profile:
        given = shown(shape)
        if len(shape) != len(dims):
            raise RecipeError(
                f"--shapes {name}: {given} has {len(shape)} dimensions, the model's input "
                f"({fixed}) has {len(dims)}"
            )
        for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
            if isinstance(dim, int) and size != dim:
                raise RecipeError(
                    f"--shapes {name}: dimension {axis} of {given} is {size}, but the model fixes "
                    f"it to {dim} ({fixed})"
                )
