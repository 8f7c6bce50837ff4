"""ONNX Runtime: load a model, run it, and see which kernels it really got.

All sessions name a provider, the CPU's by default: the plain and the GPU wheel behave alike. ONNX
Runtime logs nothing by itself here; what it has to say becomes the text of an ``EngineError``.
"""

import importlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from qcompile.errors import EngineError, RuntimeMissingError
from qcompile.runtime.provider import CPU, Provider
from qcompile.samples import Array, Feeds, Port

if TYPE_CHECKING:
    import onnxruntime as ort

EMBEDDED_BYTES = 1 << 30
"""Weights up to this size go to ONNX Runtime in memory; a protobuf message ends at 2 GiB."""

_SILENT = 4
_REPLAY = "session.enable_saved_runtime_optimizations"
_KEEP_INT8 = "session.qdqisint8allowed"
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(
    r"/\S+\.(?:h|hpp|cc|cpp):\d+ .*?\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)(?: const)?(?: |$)"
)
_LAYOUT_SUFFIX = re.compile(r"_token_\d+$")
"""What ONNX Runtime adds to the name of a node when it changes the node's layout."""
_UNKNOWN_OPERATOR = re.compile(
    r"([\w.]*):(\w+)\(-?\d+\) is not a registered|No Op registered for (\w+)"
)


class Session:
    """One model, loaded and ready to run. ``run`` may be called from several threads at once.

    Attributes:
        inputs: What ``run`` must be fed, in the model's order.
        outputs: What ``run`` returns, in the model's order. ONNX Runtime does not tell a rank of 0
            from an unknown rank: both have shape None here.
    """

    def __init__(  # noqa: PLR0913 (a model is run in many ways)
        self,
        model: Path | ir.Model,
        *,
        optimize: bool = True,
        threads: int = 1,
        spinning: bool = False,
        lean: bool = False,
        arrays: Mapping[str, Array] | None = None,
        replay: bool = False,
        provider: Provider = CPU,
    ) -> None:
        """Load the model.

        Args:
            model: A file (ONNX or ORT format), or a graph; external weights of a graph are not read
                into memory where their folder can be named.
            optimize: All of ONNX Runtime's rewrites (an engine), or none (each node computes what
                the file says and each value keeps its name).
            threads: Threads inside one operator.
            spinning: Idle threads keep a core busy for a faster start of the next operator.
            lean: Least memory rather than most speed: external weights stay mapped where their
                type allows it, and buffers are freed at once.
            arrays: In place of external weights, by initializer name; used where they are, without
                a copy. The files that the weights name are not looked for.
            replay: Apply the rewrites that an ORT-format file of style Runtime has saved; for files
                that qcompile wrote, since ONNX Runtime does not check them.
            provider: Who runs it.

        Raises:
            RuntimeMissingError: onnxruntime is not installed.
            EngineError: ONNX Runtime refuses the model; names an operator that it does not know. Or
                it has no such provider, or cannot load it.
        """
        options = _options(threads=threads, spinning=spinning)
        level = _onnxruntime().GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimize and provider.rewrites else level.ORT_DISABLE_ALL
        )
        if not optimize:
            # Reductions run right behind what they reduce, and buffers are freed at once: less
            # than half the peak memory where every activation is looked at.
            options.enable_mem_pattern = False
            options.execution_order = _onnxruntime().ExecutionOrder.PRIORITY_BASED
        if replay:
            options.add_session_config_entry(_REPLAY, "1")
        if lean:
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        self._arrays = dict(arrays or {})  # ONNX Runtime does not keep them alive
        if self._arrays:
            of_numpy = _onnxruntime().OrtValue.ortvalue_from_numpy
            values = [of_numpy(array) for array in self._arrays.values()]
            options.add_external_initializers(list(self._arrays), values)
        self.name = _name(model)
        for key, entry in provider.entries.items():
            options.add_session_config_entry(key, entry)
        self._session = _loaded(model, options, provider)
        self._quiet = _onnxruntime().RunOptions()
        self._quiet.log_severity_level = _SILENT
        self.inputs = tuple(_port(arg, self.name) for arg in self._session.get_inputs())
        self.outputs = tuple(_port(arg, self.name) for arg in self._session.get_outputs())
        self._dtypes = {port.name: port.dtype for port in self.inputs}

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once.

        Args:
            feeds: One array for each input, with the input's dtype; float32 is rounded to float16.
            names: The outputs to return; None for all.

        Returns:
            Output name to array, in the order of ``names`` or of the model.

        Raises:
            EngineError: An input is missing, unknown or of another dtype, or a node fails.
        """
        wanted = [port.name for port in self.outputs] if names is None else list(names)
        feeds = {name: self._halved(name, array) for name, array in feeds.items()}
        self._check(feeds)
        try:
            arrays = self._session.run(wanted, feeds, self._quiet)
        except Exception as error:
            raise EngineError(f"{self.name}: {sentence(error)}") from error
        return dict(zip(wanted, (np.asarray(array) for array in arrays), strict=True))

    def _halved(self, name: str, array: Array) -> Array:
        """Return an array of a float32 model as an engine with inputs in float16 wants it."""
        if self._dtypes.get(name) != np.float16 or array.dtype != np.float32:
            return array
        with np.errstate(over="ignore"):
            return array.astype(np.float16)

    def _check(self, feeds: Feeds) -> None:
        if feeds.keys() != self._dtypes.keys():
            wanted = ", ".join(self._dtypes)
            for name in self._dtypes.keys() - feeds.keys():
                raise EngineError(f"{self.name}: input {name!r} is missing; it needs {wanted}")
            for name in feeds.keys() - self._dtypes.keys():
                raise EngineError(f"{self.name}: has no input {name!r}; it needs {wanted}")
        for name, dtype in self._dtypes.items():
            found = feeds[name].dtype
            if dtype != found and dtype != np.dtype(object):
                raise EngineError(f"{self.name}: input {name!r} must be {dtype}, not {found}")


@dataclass(frozen=True)
class Kernel:
    """A node of the graph that ONNX Runtime really runs.

    Attributes:
        name: The node's name. An int8 kernel keeps the name of the node that it stands for (the
            Conv of ``DequantizeLinear -> Conv -> Relu -> QuantizeLinear``), by which plan and
            kernels can be joined; float fusions are named freely.
        op: ``domain::Operator``, such as ``com.microsoft::QLinearAdd`` or ``ai.onnx::Conv``.
        outputs: Names of its values; a change of layout may have renamed them.
    """

    name: str
    op: str
    outputs: tuple[str, ...]


def kernel_nodes(
    model: Path | ir.Model, *, replay: bool = False, provider: Provider = CPU
) -> tuple[Kernel, ...]:
    """Return the nodes that ONNX Runtime runs for a model on this host, subgraphs included.

    Args:
        model: A file (ONNX or ORT format) or a graph.
        replay: As in ``Session``.
        provider: Has the entries of the session.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        graph = optimized_model(model, Path(folder), replay=replay, provider=provider).graph
        return tuple(
            Kernel(
                name=_LAYOUT_SUFFIX.sub("", node.name or ""),
                op=f"{node.domain or 'ai.onnx'}::{node.op_type}",
                outputs=tuple(value.name or "" for value in node.outputs),
            )
            for node in graph.all_nodes()
        )


def kernels(model: Path | ir.Model) -> Counter[str]:
    """Count the operators that ONNX Runtime runs for a model, as ``domain::Operator``.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the model.
    """
    return Counter(kernel.op for kernel in kernel_nodes(model))


def optimized_model(
    model: Path | ir.Model, folder: Path, *, replay: bool = False, provider: Provider = CPU
) -> ir.Model:
    """Return the graph as ONNX Runtime runs it on this host.

    Args:
        model: A file or a graph.
        folder: Where the graph is written; its weights stay there, so it must outlive the result.
        replay: As in ``Session``.
        provider: Has the entries of the session.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the model.
    """
    out = folder / "optimized.onnx"
    save_optimized(model, out, embedded_bytes=0, replay=replay, provider=provider)
    return ir.load(out)


def save_optimized(
    model: Path | ir.Model,
    out: Path,
    *,
    embedded_bytes: int = EMBEDDED_BYTES,
    replay: bool = False,
    provider: Provider = CPU,
) -> None:
    """Write the model as ONNX Runtime optimizes it for this host's instruction set.

    Args:
        model: A file or a graph.
        out: The file to write.
        embedded_bytes: Weights beyond this size go to ``<out>.data`` beside the file.
        replay: As in ``Session``.
        provider: Has the entries of the session.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the model or cannot write.
    """
    options = _options(threads=1, spinning=False)
    options.graph_optimization_level = _onnxruntime().GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(out)
    if replay:
        options.add_session_config_entry(_REPLAY, "1")
    for key, entry in provider.entries.items():
        options.add_session_config_entry(key, entry)
    if _weight_bytes(model) > embedded_bytes:
        entry = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(f"{entry}file_name", f"{out.name}.data")
        options.add_session_config_entry(f"{entry}min_size_in_bytes", "1024")
    _loaded(model, options)


def replays(model: Path) -> bool:
    """Say whether ``Session`` can be told to ``replay`` what an ORT-format file has saved.

    ONNX Runtime 1.31 saves the rewrite of a MatMul on codes, and then cannot apply it.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
    """
    if model.suffix != ".ort":
        return False
    try:
        Session(model, replay=True)
    except EngineError:
        return False
    return True


def as_on_arm(model: Path) -> Provider:
    """Return the CPU provider such that this machine runs a model for ARM as an ARM CPU would.

    Int8 activations stay int8: on x86, ONNX Runtime makes uint8 of them, which is faster there, and
    of a Slice between Q and DQ it makes a graph that it then refuses (1.31). What an ORT-format
    file has saved is applied. On ARM itself, the former changes nothing.
    """
    entries = {_KEEP_INT8: "1"}
    if replays(model):
        entries[_REPLAY] = "1"
    return Provider(CPU.chain, entries)


def check_installed() -> None:
    """Check that there is an ONNX Runtime, for those who run it in another process.

    Raises:
        RuntimeMissingError: onnxruntime is not installed.
    """
    _onnxruntime()


def sentence(error: Exception) -> str:
    """Return the one line of an ONNX Runtime error that helps: no codes, no source locations."""
    text = " ".join(_SOURCE.sub("", _PREFIX.sub("", str(error))).split())
    if unknown := _UNKNOWN_OPERATOR.search(text):
        domain, operator, plain = unknown.groups()
        return f"ONNX Runtime has no operator {domain or 'ai.onnx'}::{operator or plain}"
    return text if len(text) <= 400 else text[:397] + "..."


def _onnxruntime() -> ModuleType:
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissingError(
            "onnxruntime is not installed: pip install 'qcompile[cpu]' (or 'qcompile[gpu]')"
        ) from error
    onnxruntime.set_default_logger_severity(_SILENT)
    return onnxruntime


def _options(*, threads: int, spinning: bool) -> "ort.SessionOptions":
    options = _onnxruntime().SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return options


def _loaded(
    model: Path | ir.Model, options: "ort.SessionOptions", provider: Provider = CPU
) -> "ort.InferenceSession":
    if isinstance(model, Path):  # data is beside the file itself
        return _session(model.resolve(), model.name, options, provider)
    folders, embedded = _weights(model)
    if embedded <= EMBEDDED_BYTES and len(folders) <= 1:
        for folder in folders:
            key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(key, folder)
        proto = ir.serde.serialize_model(model)
        return _session(proto.SerializeToString(), _name(model), options, provider)
    with tempfile.TemporaryDirectory(prefix="qcompile-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        return _session(path, _name(model), options, provider)


def _session(
    source: Path | bytes, name: str, options: "ort.SessionOptions", provider: Provider
) -> "ort.InferenceSession":
    if provider.name not in _onnxruntime().get_available_providers():
        raise EngineError(f"{name}: this ONNX Runtime has no {provider.name}")
    try:
        session = _onnxruntime().InferenceSession(
            str(source) if isinstance(source, Path) else source,
            options,
            providers=[(each, dict(chosen)) for each, chosen in provider.chain],
            enable_fallback=0,
        )
    except Exception as error:
        raise EngineError(f"{name}: {sentence(error)}") from error
    if session.get_providers()[0] != provider.name:  # it goes on without one that does not load
        raise EngineError(
            f"{name}: {provider.name} cannot be loaded: a library of NVIDIA's is missing, or of "
            "another version"
        )
    return session


def _weights(model: ir.Model) -> tuple[set[str], int]:
    """Return the folders of the external weights, and the bytes of all others."""
    folders, embedded = set(), 0
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            folders.add(str(Path(tensor.base_dir).resolve()))
        else:
            embedded += tensor.nbytes
    return folders, embedded


def _weight_bytes(model: Path | ir.Model) -> int:
    if isinstance(model, ir.Model):
        return sum(tensor.nbytes for tensor in _tensors(model))
    if model.suffix == ".ort":
        return model.stat().st_size if model.is_file() else 0  # holds its weights itself
    try:
        return sum(tensor.nbytes for tensor in _tensors(ir.load(model)))
    except Exception as error:
        raise EngineError(f"{model.name}: {sentence(error)}") from error


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _name(model: Path | ir.Model) -> str:
    return model.name if isinstance(model, Path) else (model.graph.name or "model")


def _port(arg: "ort.NodeArg", model: str) -> Port:
    if not arg.type.startswith("tensor("):
        raise EngineError(f"{model}: {arg.name!r} is a {arg.type}; only tensors can be handled")
    dtype = ir.DataType[arg.type.removeprefix("tensor(").removesuffix(")").upper()].numpy()
    return Port(name=arg.name, dtype=dtype, shape=tuple(arg.shape) or None)
