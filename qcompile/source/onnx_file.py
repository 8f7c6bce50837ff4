"""Reads an ONNX file into onnx_ir, after checking all that a hostile or broken file can hold.

Specification: onnx/onnx docs/IR.md and docs/ExternalData.md.
"""

import stat
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qcompile.errors import ModelError
from qcompile.graph.slim import LARGE_BYTES
from qcompile.graph.verify import checker_problem
from qcompile.graph.walk import all_graphs, all_nodes, consumers, release
from qcompile.progress import Progress, Silent
from qcompile.source.tensors import all_tensors, check_tensor, first_bad_value

OLDEST_OPSET = 7
_MAX_FILE_BYTES = (1 << 31) - 1
# An infinite constant elsewhere is a mask or a bound; here it can only be a broken weight.
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN"}


def load_model(path: Path, progress: Progress | None = None) -> ir.Model:
    """Read, check and return the model of a file.

    Initializers with external data stay on disk, memory-mapped when read, so a model may be larger
    than memory. Initializers that the file also lists as graph inputs become constants.

    Args:
        path: An ONNX file, opset 7 or newer; external data is looked for below its folder.
        progress: Hears what was assumed.

    Raises:
        ModelError: There is no such file, it is not ONNX, is cut short, refers to data that is
            missing or outside the folder, is inconsistent, or holds NaN weights.
    """
    progress = progress or Silent()
    proto = _read(path)
    _check_versions(proto, path)
    _check_tensors(proto, path)
    model = _deserialize(proto, path)
    _drop_initializer_inputs(model, progress)
    _check_values(model, path, progress)
    return model


def check_file(path: Path) -> None:
    """Check that there is a file to read, before anything else is done for it.

    Raises:
        ModelError: There is nothing, or a folder.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise ModelError(f"{path}: is a folder; name the .onnx file in it")


def _read(path: Path) -> onnx.ModelProto:
    check_file(path)
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelError(f"{path}: the file is empty")
        if size > _MAX_FILE_BYTES:
            raise ModelError(f"{path}: over 2 GiB; ONNX needs external data for a model that large")
        proto: onnx.ModelProto = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX file, or cut short") from None
    if not proto.HasField("graph") or not proto.HasField("ir_version"):
        raise ModelError(f"{path}: not an ONNX file: it has no graph or no IR version")
    return proto


def _check_versions(proto: onnx.ModelProto, path: Path) -> None:
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"{path}: IR version {proto.ir_version} is unknown; known are 1 to {onnx.IR_VERSION}"
        )
    opsets = [entry for entry in proto.opset_import if entry.domain in {"", "ai.onnx"}]
    if not opsets:
        raise ModelError(f"{path}: imports no opset of the default domain (ai.onnx)")
    newest = onnx.defs.onnx_opset_version()
    for entry in opsets:
        if entry.version < OLDEST_OPSET:
            raise ModelError(
                f"{path}: opset {entry.version} is older than {OLDEST_OPSET}; export it again"
            )
        if entry.version > newest:
            raise ModelError(
                f"{path}: opset {entry.version} is newer than {newest}, the newest that the "
                "installed onnx knows; update onnx or export for an older opset"
            )


def _check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise ModelError(f"{path}: sparse initializer {name} is not supported; store it dense")
    for tensor in all_tensors(proto):
        try:
            check_tensor(tensor, path.resolve().parent)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
    names = [tensor.name for tensor in proto.graph.initializer]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"{path}: initializer {twice!r} is defined twice")


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.resolve().parent)
        _load_small_tensors(model)
        problem = checker_problem(model)
    except Exception as error:  # noqa: BLE001 - onnx_ir raises whatever the file's mistake leads to
        reason = " ".join(str(error.__cause__ or error).split())
        raise ModelError(f"{path}: not valid ONNX: {reason}") from None
    if problem:
        raise ModelError(f"{path}: not valid ONNX: {problem}")
    if "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    return model


def _load_small_tensors(model: ir.Model) -> None:
    """Read small external tensors, needed for inference (axes, shapes), and those of subgraphs."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            small = tensor is not None and tensor.nbytes <= LARGE_BYTES
            if isinstance(tensor, ir.ExternalTensor) and (small or graph is not model.graph):
                array = tensor.numpy().copy()
                value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)
                release(tensor)


def _drop_initializer_inputs(model: ir.Model, progress: Progress) -> None:
    kept = [value for value in model.graph.inputs if not value.is_initializer()]
    dropped = len(model.graph.inputs) - len(kept)
    if dropped:
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
        progress.notice(
            f"{dropped} initializers were also graph inputs; they are constants now, "
            "and cannot be overridden when the engine runs"
        )


def _check_values(model: ir.Model, path: Path, progress: Progress) -> None:
    stored = [(v, v.const_value) for g in all_graphs(model) for v in g.initializers.values()]
    for node, _ in all_nodes(model):
        odd = any(a.is_ref() or a.name == "sparse_value" for a in node.attributes.values())
        if node.op_type == "Constant" and not odd:
            stored.append((node.outputs[0], ir.convenience.get_const_tensor(node.outputs[0])))
    for value, tensor in stored:
        bad = None if tensor is None else first_bad_value(tensor)
        if bad == "NaN" or (bad == "Inf" and _is_weight(value)):
            raise ModelError(f"{path}: weight {value.name} holds {bad}; the model is broken")
        if bad:
            progress.notice(f"constant {value.name} holds infinite values (a mask?); kept")


def _is_weight(value: ir.Value) -> bool:
    return any(node.op_type in _WEIGHTED for node, _ in consumers(value))
