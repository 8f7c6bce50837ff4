"""The tools that qcompile is compared with, each at its defaults and at its best.

Every peer is a function ``(model, feeds, output, transformer)`` that writes a quantized model or
raises. All run in one process with one set of versions (extras ``cpu`` and ``bench``).
"""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import version_converter

Feeds = Mapping[str, np.ndarray]
Peer = Callable[[Path, Sequence[Feeds], Path, bool], None]

WEIGHTED = ["Conv", "ConvTranspose", "MatMul", "Gemm"]
LOWEST_OPSET = 17


def ort_default(model: Path, feeds: Sequence[Feeds], output: Path, transformer: bool) -> None:
    """Run ``quantize_static`` as it comes: S8S8, per tensor, min-max, every operator it knows."""
    from onnxruntime.quantization import quantize_static

    quantize_static(str(model), str(output), reader(feeds))


def ort_all(model: Path, feeds: Sequence[Feeds], output: Path, transformer: bool) -> None:
    """Run ``quantize_static`` with U8S8, per channel, on a preprocessed model, every operator."""
    _ort_best(model, feeds, output, operators=None)


def ort_weighted(model: Path, feeds: Sequence[Feeds], output: Path, transformer: bool) -> None:
    """Run ``quantize_static`` with U8S8, per channel, on a preprocessed model, weighted only."""
    _ort_best(model, feeds, output, operators=WEIGHTED)


def nncf(model: Path, feeds: Sequence[Feeds], output: Path, transformer: bool) -> None:
    """Run ``nncf.quantize``: MIXED preset, fast bias correction, transformer type where it fits."""
    nncf = _nncf()
    onnx.save(
        nncf.quantize(
            _raised(model),
            nncf.Dataset([dict(feed) for feed in feeds]),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.ANY,
            subset_size=min(300, len(feeds)),
            fast_bias_correction=True,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        ),
        str(output),
    )


PEERS: dict[str, Peer] = {
    "ORT default": ort_default,
    "ORT all ops": ort_all,
    "ORT weighted": ort_weighted,
    "NNCF": nncf,
}


def _ort_best(
    model: Path, feeds: Sequence[Feeds], output: Path, operators: list[str] | None
) -> None:
    from onnxruntime.quantization import QuantType, quantize_static

    output = output.resolve()
    # The preparation leaves files in the current folder.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        onnx.save(_raised(model), "raised.onnx")
        _prepare("raised.onnx", "prepared.onnx")
        quantize = functools.partial(
            quantize_static,
            "prepared.onnx",
            str(output),
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        try:
            quantize(calibration_data_reader=reader(feeds))
        except ValueError:  # magika: its adjustment of weights to a bias fails on per-channel
            options = {"QDQDisableWeightAdjustForInt32Bias": True}
            quantize(calibration_data_reader=reader(feeds), extra_options=options)


def _prepare(source: str, output: str) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(source, output)
    except Exception:  # noqa: BLE001 - its symbolic shape inference fails on some graphs
        quant_pre_process(source, output, skip_symbolic_shape=True)


def _raised(path: Path) -> onnx.ModelProto:
    """Return the model at an opset that has per-channel QuantizeLinear, weights as constants."""
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [port for port in model.graph.input if port.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    default = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if default.version < LOWEST_OPSET:
        model = version_converter.convert_version(model, LOWEST_OPSET)
    return model


def reader(feeds: Iterable[Feeds]) -> Any:
    """Return the feeds as ONNX Runtime's quantizer wants them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Feeds] = iter(feeds)

        def get_next(self) -> Feeds | None:
            return next(self._left, None)

    return Reader()


def _nncf() -> Any:
    """Import NNCF with its usage reports switched off, twice: it sends them by default."""
    os.environ["NNCF_CI"] = "1"
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import nncf

    nncf.set_log_level(40)
    return nncf
