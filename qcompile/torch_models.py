"""Opens what the user calls a torch model: finds the module and what to trace it on.

Example inputs are the caller's, else those that the function returns, else the first calibration
sample, else made up by ``--shapes``.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.calibrate.npz import read_npy, read_npz
from qcompile.calibrate.readers import open_samples
from qcompile.calibrate.split import batch_size, rows
from qcompile.calibrate.text import Reading
from qcompile.errors import DataError, ModelError
from qcompile.functions import function_named
from qcompile.progress import Progress
from qcompile.recipe import Recipe
from qcompile.samples import Array, Port
from qcompile.source.hugging_face import hugging_face_model
from qcompile.source.torch_export import TorchModel
from qcompile.source.torch_inputs import Inputs, parse_axes, ranges_of, with_profiles
from qcompile.source.torch_library import torch_library
from qcompile.source.torch_problems import running_problem
from qcompile.source.torch_program import read_program
from qcompile.targets.profiles import Profile, parse_profiles

HUGGING_FACE = "hf:"
STATES = frozenset({".pt", ".pth", ".safetensors", ".ckpt", ".bin"})
"""Files of weights: no model."""

LABEL = "label"


@dataclass(frozen=True)
class Options:
    """How a torch model is traced.

    Attributes:
        example_inputs: A tensor, a tuple of arguments, or a dict of them by parameter; None takes
            those of the callable, else makes them from ``shapes`` or ``calib``.
        dynamic_axes: ``batch``, or ``input:0=batch,2=height``.
        shapes: Least, best and largest shapes, as in ``--shapes``.
        calib: Samples; the first one is traced on.
    """

    example_inputs: Any = None
    dynamic_axes: Sequence[str] = ()
    shapes: str | None = None
    calib: str | Path | None = None


def is_torch(source: object) -> bool:
    """Say whether a source is torch's: a module, a callable, a ``.pt2`` file or ``hf:DIR``."""
    if not isinstance(source, str | Path):
        return True
    text = str(source)
    if text.startswith(HUGGING_FACE) or Path(text).suffix.lower() in {".pt2", *STATES}:
        return True
    return ":" in text and Path(text).suffix != ".onnx" and not Path(text).exists()


def name_of(source: object) -> str:
    """Return what a report calls a source."""
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def file_name(source: object) -> str:
    """Return the name of the ONNX file: of ``net.py:make`` it is ``make.onnx``."""
    text = name_of(source).removeprefix(HUGGING_FACE)
    plain = Path(text).name if text.endswith(".pt2") else Path(text).name.rpartition(":")[2]
    stem = plain.removesuffix(".pt2") or Path(text).resolve().name or "model"
    return f"{stem}.onnx"


def open_model(source: Any, options: Options, recipe: Recipe, log: Progress) -> TorchModel:  # noqa: ANN401
    """Return the module of a source, in eval mode, with all that it is traced on.

    Raises:
        QcompileError: There is no such module, or nothing to trace it on.
    """
    torch_library()
    text, profiles = name_of(source), parse_profiles(options.shapes) if options.shapes else {}
    if isinstance(source, str | Path):
        if text.startswith(HUGGING_FACE):
            model = hugging_face_model(text, Path(text.removeprefix(HUGGING_FACE)), log)
            _refuse_examples(model, options)
            if options.dynamic_axes:
                raise ModelError(f"{text}: takes no --dynamic-axes: batch and length are dynamic")
            return model
        if Path(text).suffix.lower() == ".pt2":
            model = read_program(Path(text))
            _refuse_examples(model, options)
            return replace(model, axes=parse_axes(options.dynamic_axes, model.inputs.tensors()))
        if Path(text).suffix.lower() in STATES:
            raise ModelError(
                f"{text}: holds weights, no model: write a function that makes the module and "
                "loads them (torch.load(path, weights_only=True)), and name it: net.py:make"
            )
        module, given = _called(text)
    else:
        module, given = _module(text, source), None
    return _prepared(text, module, given, profiles, options, recipe, log)


def _refuse_examples(model: TorchModel, options: Options) -> None:
    if options.example_inputs is not None:
        raise ModelError(f"{model.name}: takes no example inputs: it brings its own")


def _called(name: str) -> tuple[Any, Any]:
    """Return the module and the example inputs that the user's function returns."""
    function = function_named(name, ModelError)
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise running_problem(name, "the function fails", error) from error
    if isinstance(result, tuple) and len(result) == 2:
        return _module(name, result[0]), result[1]
    return _module(name, result), None


def _module(name: str, found: Any) -> Any:  # noqa: ANN401
    torch = torch_library()
    if not isinstance(found, torch.nn.Module):
        raise ModelError(
            f"{name}: gives {type(found).__name__}, not an nn.Module, nor a module and its example "
            "inputs"
        )
    if isinstance(found, torch.jit.ScriptModule):
        raise ModelError(f"{name}: is TorchScript; give the nn.Module that it was made from")
    return found


def _prepared(
    name: str,
    module: Any,  # noqa: ANN401
    given: Any,  # noqa: ANN401
    profiles: Mapping[str, Profile],
    options: Options,
    recipe: Recipe,
    log: Progress,
) -> TorchModel:
    devices = {str(p.device) for p in module.parameters()} - {"cpu"}
    if devices:
        raise ModelError(f"{name}: is on {devices.pop()}; move it first: module.cpu()")
    module = module.eval()
    if options.example_inputs is not None:
        given = options.example_inputs
    if given is None:
        given = _made_up(name, module, profiles, options, recipe, log)
    inputs = Inputs.of(module, given, name)
    tensors = inputs.tensors()
    axes = with_profiles(parse_axes(options.dynamic_axes, tensors), profiles, tensors)
    return TorchModel(name, module, inputs, axes, ranges_of(axes, profiles))


def _made_up(
    name: str,
    module: Any,  # noqa: ANN401
    profiles: Mapping[str, Profile],
    options: Options,
    recipe: Recipe,
    log: Progress,
) -> dict[str, Any]:
    """Make example inputs from shapes or from the first sample.

    Raises:
        DataError: There is neither.
    """
    torch = torch_library()
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    if options.calib is not None:
        arrays = _first_sample(name, module, options.calib, recipe, log)
        log.notice(f"{name}: traced on the first sample of {options.calib}")
    elif profiles:
        rng = np.random.default_rng(0)
        arrays = {key: _array(key, profile.opt, rng) for key, profile in profiles.items()}
        types = ", ".join(f"{key} {array.dtype}" for key, array in arrays.items())
        log.notice(f"{name}: traced on made-up inputs of --shapes: {types}")
    else:
        raise DataError(
            f"{name}: there are no example inputs: return (module, example inputs), or give "
            "--shapes NAME:MIN,BEST,MAX or --calib"
        )
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}
    return {
        key: tensor.to(kind) if tensor.is_floating_point() else tensor
        for key, tensor in tensors.items()
    }


def _is_integer(name: str) -> bool:
    """Say whether an input of this name holds token ids, positions or a mask."""
    return name.endswith(("_ids", "_mask"))


def _array(name: str, shape: Sequence[int], rng: np.random.Generator) -> Array:
    if name.endswith("_mask"):
        return np.ones(shape, np.int64)
    if _is_integer(name):
        return np.zeros(shape, np.int64)
    return rng.standard_normal(shape).astype(np.float32)


def _first_sample(
    name: str,
    module: Any,  # noqa: ANN401
    calib: str | Path,
    recipe: Recipe,
    log: Progress,
) -> dict[str, Array]:
    """Return the first sample; of a file that holds a batch, its first row."""
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    arrays = _first_arrays(calib, [p.name for p in named])
    if arrays is None:  # pictures, text
        needed = [p.name for p in named if p.default is p.empty]
        ports = [
            Port(key, np.dtype(np.int64 if _is_integer(key) else np.float32), None)
            for key in needed
        ]
        reading = Reading(recipe.text)
        return dict(open_samples(calib, ports, recipe.preprocess, log, None, reading)[0])
    found = {key: array for key, array in arrays.items() if key != LABEL}
    unknown = found.keys() - {p.name for p in named}
    if unknown:
        raise DataError(
            f"{calib}: has {', '.join(sorted(found))}; {name} takes "
            f"{', '.join(p.name for p in named)}: give samples by parameter, or example inputs"
        )
    ports = [Port(key, array.dtype, None) for key, array in found.items()]
    cut = batch_size({key: array.shape for key, array in found.items()}, ports) > 1
    return rows(found, 0, 1) if cut else found


def _first_arrays(calib: str | Path, names: Sequence[str]) -> dict[str, Array] | None:
    """Return the arrays of the first file, or of what a callable yields first; None of others."""
    path = Path(calib)
    if not path.exists() and ":" in str(calib):
        try:
            item = next(iter(function_named(str(calib), DataError)()))
        except (Exception, SystemExit) as error:
            raise DataError(f"{calib}: failed ({type(error).__name__}: {error})") from error
        return {str(key): np.asarray(value) for key, value in dict(item).items()}
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    for file in files:
        if file.suffix.lower() == ".npz":
            return read_npz(file)
        if file.suffix.lower() == ".npy" and names:
            return {names[0]: read_npy(file)}
    return None
