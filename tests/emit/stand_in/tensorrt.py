"""Stands in for TensorRT 11 where there is no GPU, for the tests of the bundle's scripts.

Parser and builder are real: those of TensorRT for RTX, which has TensorRT 11's names and needs no
GPU. What runs an engine is made up: ONNX Runtime computes the model that it was built of (or the
one that ``STAND_IN_MODEL`` names), on memory of the library in ``cudart.c``; a run of
``model.onnx`` takes ``STAND_IN_SLOW_MS`` milliseconds longer. It is strict where TensorRT is:
shapes before addresses, types of the engine, results only after a run, weights before that.
``tests/emit/test_run_engine.py`` checks that it has no member that TensorRT lacks.
"""

import ctypes
import json
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime
import tensorrt_rtx_bindings as rtx
from tensorrt_rtx_bindings import *  # noqa: F403
from tensorrt_rtx_bindings import BuilderFlag, DataType, TensorIOMode, TensorLocation

__version__ = os.environ.get("STAND_IN_VERSION", "11.4.0.106")

_TYPES = {"float": DataType.FLOAT, "float16": DataType.HALF, "int64": DataType.INT64}
_NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT64: np.int64}


_PARSED = []
_SOURCES = {}
"""Serialized engine to the model that it was built of, and those of ``_FLAGS`` that it has."""

_FLAGS = (
    BuilderFlag.STRIP_PLAN,
    BuilderFlag.REFIT,
    BuilderFlag.VERSION_COMPATIBLE,
    BuilderFlag.WEIGHT_STREAMING,
)
"""What must be seen when the engine is loaded; the first three the real builder has with a GPU."""


class OnnxParser(rtx.OnnxParser):
    def parse_from_file(self, model):
        _PARSED.append(model)
        return super().parse_from_file(model)


class Builder(rtx.Builder):
    def build_serialized_network(self, network, config):
        flags = {flag for flag in _FLAGS if config.get_flag(flag)}
        for flag in flags:
            config.clear_flag(flag)
        plan = super().build_serialized_network(network, config)
        if plan is not None:
            _SOURCES[bytes(plan)] = _PARSED[-1], flags
        return plan


class Runtime:
    def __init__(self, logger):
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine):
        if os.environ.get("STAND_IN_CRASH"):
            os.abort()
        source, flags = _SOURCES[bytes(serialized_engine)]
        if BuilderFlag.VERSION_COMPATIBLE in flags and not self.engine_host_code_allowed:
            return None
        return ICudaEngine(source, flags)


class Refitter:
    def __init__(self, engine, logger):
        self._engine = engine
        self._model = None

    def refit_cuda_engine(self):
        if self._engine._source == self._model and BuilderFlag.REFIT in self._engine._flags:
            self._engine._flags -= {BuilderFlag.STRIP_PLAN}
        return BuilderFlag.STRIP_PLAN not in self._engine._flags

    def get_missing_weights(self):
        return ["all of them"]


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self._refitter = refitter

    def refit_from_file(self, model):
        self._refitter._model = model
        return True


class ICudaEngine:
    def __init__(self, source, flags):
        self._source, self._flags = source, flags
        path = os.environ.get("STAND_IN_MODEL", source)
        is_engine = Path(source).name == "model.onnx"
        self._delay = is_engine * float(os.environ.get("STAND_IN_SLOW_MS", "0")) / 1e3
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._ports = {
            p.name: p for p in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        self._inputs = {p.name for p in self._session.get_inputs()}
        self._names = list(self._ports)
        self.num_io_tensors = len(self._names)
        self.weight_streaming_budget_v2 = 0

    def get_tensor_name(self, index):
        return self._names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return _TYPES[self._ports[name].type[len("tensor(") : -1]]

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE if name in self._ports else None

    def get_weight_streaming_automatic_budget(self):
        return 1 << 20

    def create_execution_context(self):
        if BuilderFlag.WEIGHT_STREAMING in self._flags and not self.weight_streaming_budget_v2:
            return None  # as if nothing could stay on the host
        return IExecutionContext(self)

    def create_engine_inspector(self):
        return EngineInspector()


class IExecutionContext:
    def __init__(self, engine):
        self._engine = engine
        self._shapes = {}
        self._addresses = {}
        self._allocators = {}

    def set_input_shape(self, name, shape):
        if shape and shape[0] > 4:  # as if the profile ended there
            return False
        self._shapes = {n: s for n, s in self._shapes.items() if n in self._engine._inputs}
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, memory):
        assert memory, name
        self._addresses[name] = memory
        return True

    def set_output_allocator(self, name, output_allocator):
        self._allocators[name] = output_allocator
        return True

    def infer_shapes(self):
        missing = [name for name in self._engine._inputs if name not in self._shapes]
        if not missing:
            self._results = self._computed()
            for name, array in self._results.items():
                fixed = None not in self._engine._ports[name].shape
                self._shapes[name] = array.shape if fixed else (-1,) * array.ndim
        return missing

    def get_tensor_shape(self, name):
        return self._shapes[name]

    def execute_async_v3(self, stream_handle):
        assert stream_handle == 7
        if BuilderFlag.STRIP_PLAN in self._engine._flags:
            return False
        if self._engine._delay:
            time.sleep(self._engine._delay)
        for name, array in self._computed().items():
            if -1 in self._shapes[name]:
                allocator = self._allocators[name]
                place = allocator.reallocate_output_async(name, 0, array.nbytes, 256, stream_handle)
                allocator.notify_shape(name, array.shape)
            else:
                place = self._addresses[name]
            ctypes.memmove(place, array.tobytes(), array.nbytes)
        return True

    def _computed(self):
        engine = self._engine
        feeds = {}
        for name in engine._inputs:
            array = np.empty(self._shapes[name], _NUMPY[engine.get_tensor_dtype(name)])
            ctypes.memmove(array.ctypes.data, self._addresses[name], array.nbytes)
            feeds[name] = array
        names = [name for name in engine._names if name not in engine._inputs]
        return dict(zip(names, engine._session.run(names, feeds), strict=True))


class EngineInspector:
    def __init__(self):
        self.execution_context = None

    def get_engine_information(self, format):  # noqa: A002
        assert isinstance(self.execution_context, IExecutionContext), format
        port = {"Name": "x", "Dimensions": [2, 16, 8, 8], "Format": "kLINEAR", "Datatype": "Int8"}
        layer = {"Name": "conv", "LayerType": "gemm", "Inputs": [port], "Constants": [port]}
        layer |= {"Outputs": [port], "TacticName": "made up", "Metadata": "[ONNX Layer: conv]"}
        return json.dumps({"Layers": [layer], "I/O Tensors": []})
