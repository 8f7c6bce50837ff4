"""Writes ORT-format files for phones, through onnxruntime's own converter.

The converter runs in a process of its own: importing it sets up logging for the whole process, and
it obeys an environment variable that would change what it writes.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qcompile.errors import EngineError, OutputError
from qcompile.graph.walk import weight_bytes
from qcompile.runtime.ort import check_installed, kernels, sentence
from qcompile.targets.execution_provider import Style

MODEL = "model.ort"
OPERATORS = "required_operators.config"
TYPES = "required_operators_and_types.config"

FLATBUFFER_BYTES = (1 << 31) - (1 << 24)
"""A flatbuffer ends at 2 GiB; the graph itself needs some of it."""

_CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"
_LEVEL = "ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL"
_RUNTIME = ".with_runtime_opt"


@dataclass(frozen=True)
class OrtFiles:
    """What a phone needs, and what was found in it.

    Attributes:
        model: The ORT-format model; it holds its weights.
        operators: The operators that a minimal build must have (``--include_ops_by_config``).
        types: The same with the types of each (``--enable_reduced_operator_type_support``).
        kernels: Operators of the file (``domain::Operator``), counted: the file was read back.
    """

    model: Path
    operators: Path
    types: Path
    kernels: Mapping[str, int]

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file, by name."""
        return {path.name: path.stat().st_size for path in (self.model, self.operators, self.types)}


def write_ort(model: Path, folder: Path, style: Style) -> OrtFiles:
    """Convert an ONNX file for ARM, and read the result back.

    For ARM means: int8 activations stay int8, where the converter would make uint8 of them for an
    x86 CPU, and no layout of x86 is baked in.

    Args:
        model: The ONNX file; it stays as it is.
        folder: Where the files go, once all of them are written and read back.
        style: Fixed bakes in the CPU provider's kernels. Runtime keeps Q and DQ for providers that
            compile them, with the rewrites for nodes that stay on the CPU saved beside the graph.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
        EngineError: The model is too large for the format, computes in float16, or ONNX Runtime
            refuses it.
        OutputError: The disk refuses.
    """
    check_installed()
    source = _loaded(model)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".ort-") as name:
            scratch = Path(name)
            _copy(source, model, scratch / "model.onnx")
            _convert(scratch, style, model.name)
            files = _finish(scratch, style)
            found = kernels(files[0])
            _check_casts(source, found, model.name)
            model_file, operators, types = (path.replace(folder / path.name) for path in files)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error
    return OrtFiles(model_file, operators, types, dict(found))


def computes_in_halves(model: ir.Model) -> bool:
    """Say whether any value of a model is in half precision."""
    return any(_is_half(value) for value in _values(model))


def _loaded(path: Path) -> ir.Model:
    try:
        model = ir.load(path)
    except Exception as error:
        raise EngineError(f"{path.name}: {sentence(error)}") from error
    size = weight_bytes(model)
    if size > FLATBUFFER_BYTES:
        raise EngineError(
            f"{path.name}: {size / 1e9:.1f} GB of weights, and an .ort file ends at 2.1 GB; take "
            "fewer bits, or ship the ONNX file for the full onnxruntime package"
        )
    return model


def _copy(source: ir.Model, path: Path, copy: Path) -> None:
    """Copy the model as one file: the converter makes a folder beside what it converts."""
    tensors = (v.const_value for v in source.graph.initializers.values())
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
        ir.save(ir.external_data.load_to_model(source.clone()), copy)
    else:
        shutil.copyfile(path, copy)


def _convert(scratch: Path, style: Style, name: str) -> None:
    """Run the converter on ``model.onnx`` of a folder; its files go to ``out`` below it."""
    options = ["--output_dir", "out", "--optimization_style", style, "--target_platform", "arm"]
    command = [sys.executable, "-P", "-m", _CONVERTER, *options, "--enable_type_reduction"]
    environment = {key: value for key, value in os.environ.items() if key != _LEVEL}
    done = subprocess.run(  # noqa: S603 - our own interpreter, no shell
        [*command, "model.onnx"],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise EngineError(f"{name}: onnxruntime's converter failed: {_fault(done)}")


def _fault(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    text = lines[-1] if lines else f"exit code {done.returncode}"
    kind, _, message = text.partition(": ")
    return sentence(RuntimeError(message if message and " " not in kind else text))


def _finish(scratch: Path, style: Style) -> list[Path]:
    """Name the converter's files as the bundle does; leave out where they were made."""
    out = scratch / "out"
    suffix = _RUNTIME if style == "Runtime" else ""
    model, operators, types = scratch / MODEL, scratch / OPERATORS, scratch / TYPES
    (out / f"model{suffix}.ort").replace(model)
    text = (out / f"model.required_operators_and_types{suffix}.config").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    version = importlib.metadata.version("onnxruntime")
    head = f"# {MODEL}, converted by onnxruntime {version}, style {style}, for arm"
    types.write_text("\n".join([head, *lines, ""]), "utf-8")
    operators.write_text("\n".join([head, *map(_without_types, lines), ""]), "utf-8")
    return [model, operators, types]


def _without_types(line: str) -> str:
    """Return a line of the configuration without the JSON behind each operator."""
    return "".join(_outside_braces(line))


def _outside_braces(text: str) -> Iterator[str]:
    depth = 0
    for character in text:
        depth += character == "{"
        if not depth:
            yield character
        depth -= character == "}"


def _check_casts(source: ir.Model, found: Counter[str], name: str) -> None:
    """Refuse a file whose float16 nodes were turned into float32 ones.

    Raises:
        EngineError: It has casts that the model has not.
    """
    there = sum(node.op_type == "Cast" and not node.domain for node in source.graph.all_nodes())
    added = found["ai.onnx::Cast"] - there
    if added > 0 and computes_in_halves(source):
        raise EngineError(
            f"{name}: onnxruntime's converter puts {added} casts to float32 around its float16 "
            "nodes, for it has no float16 kernels on this CPU; ship the ONNX file for the full "
            "onnxruntime package, or convert the float32 model"
        )


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from (value for value in (*node.inputs, *node.outputs) if value is not None)


def _is_half(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
