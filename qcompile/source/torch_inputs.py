"""What a torch module is traced on: example inputs by name, their dynamic axes, random variants.

An input is named by its place in ``forward``: the parameter's name, and behind a dot what leads to
a tensor inside it (``past_key_values.0.key``). ONNX inputs and outputs get these names.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompile.errors import DataError, RecipeError
from qcompile.source.torch_library import torch_library
from qcompile.targets.profiles import Profile

Axes = Mapping[str, Mapping[int, str]]
"""Input to dimension to the name of a dynamic axis."""

Tensors = dict[str, Any]
"""Input name to ``torch.Tensor``."""

_FORM = "write batch, for the first dimension of each input, or input:0=batch,2=height"
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Inputs:
    """The arguments of ``forward``, bound to its parameters.

    Attributes:
        arguments: As ``inspect`` bound them; tensors may lie in lists, tuples and dicts.
        rest: The parameter that takes all other keywords (``**rest``), if there is one.
    """

    arguments: inspect.BoundArguments
    rest: str | None

    @classmethod
    def of(cls, module: Any, given: Any, name: str) -> "Inputs":  # noqa: ANN401 (torch is optional)
        """Bind example inputs.

        Args:
            module: The ``nn.Module``.
            given: A tensor, a tuple or list of arguments, or a dict of them by parameter.
            name: Of the model, for messages.

        Raises:
            DataError: They do not fit ``forward``, or hold no tensor.
        """
        signature = inspect.signature(module.forward)
        if isinstance(given, torch_library().Tensor):
            given = (given,)
        args = () if isinstance(given, Mapping) else tuple(given)
        kwargs = dict(given) if isinstance(given, Mapping) else {}
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise DataError(
                f"{name}: the example inputs do not fit forward{signature}: {error}"
            ) from error
        kinds = signature.parameters.values()
        rest = [found.name for found in kinds if found.kind is found.VAR_KEYWORD]
        inputs = cls(bound, rest[0] if rest else None)
        if not inputs.tensors():
            raise DataError(f"{name}: the example inputs hold no tensor")
        return inputs

    @property
    def args(self) -> tuple[Any, ...]:
        """Return what goes to ``forward`` by position."""
        return self.arguments.args

    @property
    def kwargs(self) -> dict[str, Any]:
        """Return what goes to ``forward`` by name."""
        return self.arguments.kwargs

    def tensors(self) -> Tensors:
        """Return the tensors by name, in the order of ONNX inputs."""
        found: Tensors = {}

        def note(name: str, tensor: Any) -> Any:  # noqa: ANN401
            found[name] = tensor
            return tensor

        self._mapped(note)
        return found

    def replaced(self, tensors: Mapping[str, Any]) -> "Inputs":
        """Return the same arguments with other tensors."""
        changed = self._mapped(tensors.get)
        bound = inspect.BoundArguments(self.arguments.signature, changed)
        return Inputs(bound, self.rest)

    def shapes(self, axes: Axes, spec: Callable[[str], Any]) -> dict[str, Any]:
        """Return what ``torch.export`` calls dynamic shapes.

        Args:
            axes: The dynamic ones.
            spec: Axis name to a ``torch.export.Dim``.
        """

        def dims(name: str, _tensor: Any) -> Any:  # noqa: ANN401
            return {axis: spec(label) for axis, label in axes.get(name, {}).items()} or None

        return self._mapped(dims, otherwise=lambda _leaf: None)

    def _mapped(
        self,
        tensor: Callable[[str, Any], Any],
        otherwise: Callable[[Any], Any] = lambda leaf: leaf,
    ) -> dict[str, Any]:
        kind = torch_library().Tensor

        def visit(path: Any, leaf: Any) -> Any:  # noqa: ANN401
            if not isinstance(leaf, kind):
                return otherwise(leaf)
            keys = path[1:] if key_of(path[0]) == self.rest else path
            return tensor(".".join(map(key_of, keys)), leaf)

        from torch.utils import _pytree as pytree

        return pytree.tree_map_with_path(visit, dict(self.arguments.arguments))  # type: ignore[no-any-return, unused-ignore]


def key_of(key: Any) -> str:  # noqa: ANN401 (one of torch's three kinds of keys)
    """Return a step of a path into arguments or outputs as text."""
    for field in ("key", "idx", "name"):
        if hasattr(key, field):
            return str(getattr(key, field))
    return str(key)


def parse_axes(texts: Sequence[str], tensors: Tensors) -> dict[str, dict[int, str]]:
    """Return the dynamic axes that ``--dynamic-axes`` names.

    Args:
        texts: ``batch``, or ``input:0=batch,2=height``.
        tensors: The example inputs.

    Raises:
        RecipeError: A text is malformed, or names no input or dimension.
    """
    axes: dict[str, dict[int, str]] = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        if not colon:
            label = _label(text, text)
            for each, tensor in tensors.items():
                if tensor.ndim:
                    axes.setdefault(each, {})[0] = label
            continue
        if name not in tensors:
            raise RecipeError(
                f"--dynamic-axes {text}: forward has no input {name!r}; it has {', '.join(tensors)}"
            )
        for part in dims.split(","):
            axis, equals, label = part.partition("=")
            if not equals or not axis.isdecimal():
                raise RecipeError(f"--dynamic-axes {text}: {part!r} is no axis: {_FORM}")
            if int(axis) >= tensors[name].ndim:
                shape = list(tensors[name].shape)
                raise RecipeError(f"--dynamic-axes {text}: {name} has no dimension {axis}: {shape}")
            axes.setdefault(name, {})[int(axis)] = _label(label, text)
    return axes


def _label(label: str, text: str) -> str:
    if not _NAME.fullmatch(label):
        raise RecipeError(f"--dynamic-axes {text}: {label!r} is no name: {_FORM}")
    return label


def with_profiles(axes: Axes, profiles: Mapping[str, Profile], tensors: Tensors) -> Axes:
    """Add the axes that ``--shapes`` makes dynamic: those with a largest above the least size.

    Raises:
        RecipeError: A profile names no input, or has another rank.
    """
    found = {name: dict(dims) for name, dims in axes.items()}
    for name, profile in profiles.items():
        if name not in tensors:
            raise RecipeError(
                f"--shapes {name}: forward has no such input; it has {', '.join(tensors)}"
            )
        if len(profile.min) != tensors[name].ndim:
            raise RecipeError(
                f"--shapes {name}: has {len(profile.min)} dimensions, the example input has "
                f"{tensors[name].ndim}"
            )
        for axis, (least, most) in enumerate(zip(profile.min, profile.max, strict=True)):
            if least < most:
                label = "batch" if axis == 0 else f"{name.replace('.', '_')}_{axis}"
                found.setdefault(name, {}).setdefault(axis, label)
    return found


def ranges_of(axes: Axes, profiles: Mapping[str, Profile]) -> dict[str, tuple[int, int]]:
    """Return least and largest size of each axis that ``--shapes`` bounds, by its name."""
    ranges: dict[str, tuple[int, int]] = {}
    for name, profile in profiles.items():
        for axis, label in axes.get(name, {}).items():
            low, high = ranges.get(label, (profile.min[axis], profile.max[axis]))
            ranges[label] = min(low, profile.min[axis]), max(high, profile.max[axis])
    return ranges


def widened(tensors: Tensors, axes: Axes) -> Tensors:
    """Return the tensors with at least two elements along dynamic axes.

    torch takes a size of 0 or 1 for a constant, whatever is said of the axis.
    """
    torch = torch_library()
    found = dict(tensors)
    for name, dims in axes.items():
        for axis in dims:
            tensor = found[name]
            if tensor.shape[axis] == 1:
                found[name] = tensor.repeat_interleave(2, dim=axis)
            elif tensor.shape[axis] == 0:
                shape = [2 if i == axis else size for i, size in enumerate(tensor.shape)]
                found[name] = torch.zeros(shape, dtype=tensor.dtype)
    return found


def redrawn(tensor: Any, shape: Sequence[int], rng: np.random.Generator) -> Any:  # noqa: ANN401
    """Return a tensor of another shape, its elements drawn from those of an example.

    So token ids stay in the vocabulary and a mask stays a mask. Floats that are all equal, zeros
    above all, say nothing about a model: standard normal ones take their place.
    """
    torch = torch_library()
    count = int(np.prod(shape, dtype=np.int64))
    flat = tensor.detach().reshape(-1)
    if tensor.is_floating_point() and (not len(flat) or bool((flat == flat[0]).all())):
        drawn = torch.from_numpy(rng.standard_normal(count)).to(tensor.dtype)
    elif not len(flat):
        drawn = torch.zeros(count, dtype=tensor.dtype)
    else:
        drawn = flat[torch.from_numpy(rng.integers(0, len(flat), count))]
    return drawn.reshape(tuple(shape))
