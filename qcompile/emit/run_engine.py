"""Runs an engine of TensorRT on samples, through nothing but tensorrt, numpy and the CUDA runtime.

Travels in a bundle for TensorRT beside ``build_engine.py``, which calls it with the engine that it
has just built. An engine file holds machine code: one from elsewhere is never loaded.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorrt as trt

if TYPE_CHECKING:
    import qcompile.emit.engine_figures as figures
    import qcompile.emit.engine_timing as timing
    from qcompile.emit.engine_request import Refused
else:
    import engine_figures as figures
    import engine_timing as timing
    from engine_request import Refused

HOW = "host clock from enqueue to the end, data on the device, no CUDA graph"
_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
_FOLDERS = (
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/aarch64-linux/lib",
    "/usr/local/cuda/targets/sbsa-linux/lib",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu/tegra",
)
_TO_DEVICE, _TO_HOST = 1, 2
_NON_BLOCKING = 1
_MAJOR, _MINOR = 75, 76
_PROPERTIES_BYTES = 1 << 14
"""More than any CUDA's cudaDeviceProp, of which the name is the first field."""


class Cuda:
    """The CUDA runtime library, one stream, and the memory that was taken.

    Raises:
        Refused: There is no such library, or no GPU that it can use.
    """

    def __init__(self) -> None:
        self._library = _cuda_runtime()
        self._taken: list[int] = []
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        self.stream = stream.value or 0

    def device(self) -> dict[str, Any]:
        """Return the GPU's name and compute capability, 87 for 8.7."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", properties, 0)
        digits = [ctypes.c_int(), ctypes.c_int()]
        self._call("cudaDeviceGetAttribute", ctypes.byref(digits[0]), _MAJOR, 0)
        self._call("cudaDeviceGetAttribute", ctypes.byref(digits[1]), _MINOR, 0)
        return {
            "name": properties.value.decode(errors="replace"),
            "sm": 10 * digits[0].value + digits[1].value,
        }

    def allocate(self, size: int) -> int:
        """Return the address of memory on the device, of at least one byte."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        self._taken.append(address.value or 0)
        return self._taken[-1]

    def upload(self, array: np.ndarray) -> int:
        """Return the address of a copy of a contiguous array on the device."""
        address = self.allocate(array.nbytes)
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)
        return address

    def download(self, address: int, array: np.ndarray) -> None:
        """Fill a contiguous array from the device."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)

    def wait(self) -> None:
        """Wait for the stream."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def free(self) -> None:
        """Give all memory back."""
        while self._taken:
            self._call("cudaFree", ctypes.c_void_p(self._taken.pop()))

    def _copy(self, to: int, source: int, size: int, direction: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            direction,
            ctypes.c_void_p(self.stream),
        )
        self.wait()

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise Refused(f"{name}: {_reason(self._library, code)}")


def _cuda_runtime() -> ctypes.CDLL:
    """Return the first CUDA runtime that finds a GPU: one may be too new for the driver."""
    found = ctypes.util.find_library("cudart")
    places = [*_LIBRARIES, *([found] if found else [])]
    for folder in [*map(Path, _FOLDERS), *_wheel_folders()]:
        places += [str(path) for path in sorted(folder.glob("libcudart.so*"), reverse=True)]
    reason = "install the CUDA runtime, or: pip install nvidia-cuda-runtime"
    for place in places:
        try:
            library = ctypes.CDLL(place)
        except OSError:
            continue
        count = ctypes.c_int()
        code = library.cudaGetDeviceCount(ctypes.byref(count))
        if not code and count.value:
            return library
        reason = f"{place}: {_reason(library, code) if code else 'no GPU'}"
    raise Refused(f"no GPU can be used ({reason})")


def _wheel_folders() -> list[Path]:
    """Return where pip puts the CUDA runtime: nvidia/cuda_runtime/lib, nvidia/cu13/lib."""
    roots = [Path(path) / "nvidia" for path in sys.path if path]
    return [folder for root in roots for folder in sorted(root.glob("cu*/lib"), reverse=True)]


def _reason(library: ctypes.CDLL, code: int) -> str:
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return f"CUDA error {code}, {library.cudaGetErrorString(code).decode(errors='replace')}"


class Growing(trt.IOutputAllocator):  # type: ignore[misc]
    """Memory of an output whose size only the run tells."""

    def __init__(self, cuda: Cuda) -> None:
        trt.IOutputAllocator.__init__(self)
        self.address = self.size = 0
        self.shape: tuple[int, ...] = ()
        self._cuda = cuda

    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:  # noqa: ARG002
        """Return memory of so many bytes; cudaMalloc's is aligned to 256."""
        if not self.address or size > self.size:
            self.address, self.size = self._cuda.allocate(size), size
        return self.address

    def reallocate_output_async(
        self,
        tensor_name: str,
        memory: int,
        size: int,
        alignment: int,
        stream: int,  # noqa: ARG002
    ) -> int:
        """Do the same where TensorRT offers its stream."""
        return self.reallocate_output(tensor_name, memory, size, alignment)

    def notify_shape(self, tensor_name: str, shape: trt.Dims) -> None:  # noqa: ARG002
        """Keep the shape that came out."""
        self.shape = tuple(shape)


class Session:
    """An engine that is loaded and ready to run.

    Args:
        plan: The engine as it was just built.
        request: What ``build.json`` says.
        model: The ONNX file, whose weights a stripped engine is given back.
        log: TensorRT's logger.
        cuda: Where to run.

    Raises:
        Refused: TensorRT cannot load the engine.
    """

    def __init__(
        self, plan: memoryview, request: dict[str, Any], model: Path, log: trt.ILogger, cuda: Cuda
    ) -> None:
        self._cuda = cuda
        runtime: trt.Runtime = trt.Runtime(log)
        runtime.engine_host_code_allowed = request["version_compatible"]
        engine: trt.ICudaEngine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise Refused("TensorRT cannot load the engine that it built")
        if request["strip"]:
            _refit(engine, model, log)
        if request["weight_streaming"]:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        context: trt.IExecutionContext = engine.create_execution_context()
        if context is None:
            raise Refused("the engine needs more memory than the GPU has left")
        self._context = context  # in this order they are freed
        self._engine = engine
        self._runtime = runtime
        self._kinds: dict[str, str] = {}
        self._places: dict[str, int | Growing] = {}
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        for index in range(engine.num_io_tensors):
            name: str = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs).append(name)
            self._kinds[name] = engine.get_tensor_dtype(name).name
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise Refused(f"{name}: TensorRT wants it on the host")

    def prepare(self, feeds: dict[str, np.ndarray]) -> None:
        """Put one sample on the device and take memory for its outputs.

        Raises:
            Refused: The sample does not fit the engine.
        """
        self._cuda.free()
        context: trt.IExecutionContext = self._context
        for name in self.inputs:
            try:
                array = figures.encoded(feeds[name], self._kinds[name])
            except ValueError as error:
                raise Refused(f"{name}: {error}") from error
            if not context.set_input_shape(name, array.shape):
                raise Refused(f"{name}: shape {array.shape} is outside the profile")
            context.set_tensor_address(name, self._cuda.upload(array))
        unknown = context.infer_shapes()
        if unknown:
            raise Refused(f"TensorRT does not know the shape of {', '.join(unknown)}")
        for name in self.outputs:
            shape = tuple(context.get_tensor_shape(name))
            if -1 in shape:
                growing = Growing(self._cuda)
                context.set_output_allocator(name, growing)
                self._places[name] = growing
            else:
                stored = np.dtype(figures.STORED[self._kinds[name]])
                address = self._cuda.allocate(math.prod(shape) * stored.itemsize)
                context.set_tensor_address(name, address)
                self._places[name] = address

    def execute(self) -> None:
        """Run what was prepared, to the end.

        Raises:
            Refused: TensorRT or CUDA fails.
        """
        context: trt.IExecutionContext = self._context
        if not context.execute_async_v3(self._cuda.stream):
            raise Refused("TensorRT cannot run the engine; its messages stand above")
        self._cuda.wait()

    def results(self) -> dict[str, np.ndarray]:
        """Return the outputs of the last run, as numbers."""
        context: trt.IExecutionContext = self._context
        found = {}
        for name in self.outputs:
            place = self._places[name]
            if isinstance(place, Growing):
                shape, address = place.shape, place.address
            else:
                shape, address = tuple(context.get_tensor_shape(name)), place
            array = np.empty(shape, figures.STORED[self._kinds[name]])
            self._cuda.download(address, array)
            found[name] = figures.decoded(array, self._kinds[name])
        return found

    def timed(self) -> dict[str, Any]:
        """Return the median time of what was prepared, in milliseconds, and how it was taken."""
        context: trt.IExecutionContext = self._context
        shapes = {name: list(context.get_tensor_shape(name)) for name in self.inputs}
        return {**timing.timed(self.execute), "shapes": shapes, "how": HOW}

    def information(self) -> str:
        """Return the EngineInspector's JSON; dynamic types are those of what was prepared."""
        engine: trt.ICudaEngine = self._engine
        inspector: trt.EngineInspector = engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _refit(engine: trt.ICudaEngine, model: Path, log: trt.ILogger) -> None:
    """Give a stripped engine the model's weights."""
    refitter: trt.Refitter = trt.Refitter(engine, log)
    parser: trt.OnnxParserRefitter = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(model)) or not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:3])
        raise Refused(f"TensorRT cannot give the weights back; missing: {missing or '?'}")
