"""ONNX Runtime on phones: ORT-format models, with an execution provider beside the CPU's."""

from dataclasses import replace

from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.providers import PROVIDERS

ORT_MOBILE = replace(
    ORT_CPU,
    name="ort-mobile",
    summary="ONNX Runtime on phones: .ort files for the CPU, XNNPACK, NNAPI, CoreML or QNN",
    opset=19,  # NNAPI knows no newer operators, Core ML none beyond 20
    devices={
        name: replace(
            provider.device,
            static=None if provider.static is ORT_CPU.static else provider.static,
            fixed_sizes=provider.fixed or provider.sized,
        )
        for name, provider in PROVIDERS.items()
    },
    device_option="--ep",
)
