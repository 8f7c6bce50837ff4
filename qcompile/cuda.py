"""Sessions of ONNX Runtime on NVIDIA GPUs: checked against the tables, and run where a GPU is."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import onnx_ir as ir

from qcompile.emit.device_files import write_device_files, write_float_model
from qcompile.emit.session_files import CONTEXT, SessionRequest
from qcompile.errors import EngineError
from qcompile.graph.walk import all_nodes, weight_bytes
from qcompile.lint.cuda import PROVIDERS, check_cuda
from qcompile.lint.cuda import Provider as ProviderName
from qcompile.lint.rule import Finding, Setting, refusal
from qcompile.report.schema import Delivery
from qcompile.runtime import cuda
from qcompile.runtime.ort import Session
from qcompile.runtime.provider import Engine, Provider
from qcompile.runtime.tensorrt import major_version
from qcompile.samples import InMemory, Samples
from qcompile.sections import finding_rows
from qcompile.written import JUDGED_THERE, Delivered, Written

_FALLS = {
    "C01": "no CUDA kernel",
    "C02": "no CUDA kernel in this type",
    "C05": "codes without a CUDA kernel",
    "C07": "MatMulInteger with uint8",
}
"""Rules that say of a node that it runs on the CPU, to the reason."""
_KINDS: Mapping[ProviderName, str] = {
    "cuda": "ONNX model for ONNX Runtime's CUDA provider",
    "tensorrt": "engines of ONNX Runtime's TensorRT provider",
}
_ABSENT: Mapping[ProviderName, Literal["built", "yet to be built"]] = {
    "cuda": "built",
    "tensorrt": "yet to be built",
}
"""State of what cannot be run here: the CUDA provider needs the ONNX model alone."""


def deliver(written: Written) -> Delivered:
    """Check the ONNX file against the provider's kernels; write what runs and judges it elsewhere.

    Where a GPU is, that is run once in a process of its own: it builds TensorRT's engines.

    Raises:
        EngineError: No provider has a kernel for a node, or the kernel would misread it.
        QcompileError: Shapes contradict the model, a sample cannot be read, the disk refuses.
    """
    model, folder = ir.load(written.model), written.model.parent
    device = next(name for name in PROVIDERS if name == written.device)
    found = _checked(written, model, device)
    provider = _provider(written, model, device)
    _write_files(written, provider)
    why = cuda.missing(device)
    ran = None if why else cuda.run_bundle(folder)
    falls = Counter(_FALLS[finding.rule] for finding in found if finding.rule in _FALLS)
    count = sum(1 for _ in all_nodes(model))
    predicted = ran is None and device == "cuda"
    facts = Delivery(
        kind=_KINDS[device],
        state="run" if ran else _ABSENT[device],
        path=_path(written, device, why),
        bytes=sum(file.stat().st_size for file in folder.glob("model.onnx*")),
        seconds=ran.load_seconds if ran else None,
        library=f"ONNX Runtime {ran.onnxruntime}" if ran else "",
        findings=finding_rows(found),
        placed={"CUDA": count - falls.total(), "CPU": falls.total()} if predicted else {},
        fallen=falls if predicted else {},
        notes=_measured(ran) if ran else _left_to_do(written, device, why),
    )
    if why:
        untimed = f"not run: {why}; accuracy is that of the simulated model"
        return Delivered(None, facts, untimed, left=JUDGED_THERE)
    return Delivered(Engine(written.model, cuda.in_folder(provider, folder)), facts)


def _checked(written: Written, model: ir.Model, device: ProviderName) -> list[Finding]:
    """Check the graph that was written; it must not break a rule that forbids it.

    Raises:
        EngineError: It does; names the node and the rule.
    """
    version = major_version(written.recipe.tensorrt.version) if device == "tensorrt" else 11
    setting = Setting("tensorrt", version, (), written.profiles)
    found = check_cuda(model, device, setting, written.log)
    if why := refusal(found):
        raise EngineError(f"{cuda.NAMES[device]} would not run the model: {why}")
    return found


def _provider(written: Written, model: ir.Model, device: ProviderName) -> Provider:
    if device == "cuda":
        if written.recipe.cuda.context:
            written.log.notice("an EPContext model takes --ep tensorrt: CUDA builds no engines")
        return cuda.cuda_provider()
    options = written.recipe.tensorrt
    for name in cuda.not_taken(options):
        written.log.notice(f"tensorrt.{name}: ONNX Runtime's provider has no option for it")
    if any(set(name) & set(",:") for name in written.profiles):
        written.log.notice(
            "the options of TensorRT's provider cannot hold shapes of inputs with a comma or a "
            "colon in their names: its engines will be built anew for each new shape"
        )
    size = weight_bytes(model) if written.recipe.cuda.context else None
    return cuda.tensorrt_provider(options, written.profiles, context_bytes=size)


def _write_files(written: Written, provider: Provider) -> None:
    folder, gates = written.model.parent, written.recipe.gates
    float_model = write_float_model(folder, written.loaded.model, gates, written.log)
    request = SessionRequest(
        model=written.model.name,
        inputs=written.loaded.inputs,
        outputs=tuple(port.name for port in written.loaded.outputs),
        provider=provider,
        profiles=written.profiles,
        context=written.recipe.cuda.context and written.device == "tensorrt",
        gates=gates,
        float_model=float_model,
    )
    samples: Samples = written.data.evaluation or InMemory([])
    session = written.loaded.session or Session(written.loaded.path)
    write_device_files(folder, request, samples, session.run, written.log)


def _path(written: Written, device: ProviderName, why: str) -> str:
    if device == "cuda":
        return written.model.name
    if why:
        return ""  # engines are built where they run
    return CONTEXT if written.recipe.cuda.context else written.model.name


def _left_to_do(written: Written, device: ProviderName, why: str) -> tuple[str, ...]:
    builds = "builds the engines, " if device == "tensorrt" else ""
    context = f"writes {CONTEXT}, " if builds and written.recipe.cuda.context else ""
    run = (
        f"{why}: checked against the table of kernels alone; run python3 run_session.py in this "
        f"folder on the device: it {builds}{context}compares with the samples here and exits 3 "
        "when a gate is missed"
    )
    if device == "tensorrt" and written.recipe.scheme == "fp8":
        return (run, "FP8 needs a GPU of compute capability 8.9 or later")
    return (run,)


def _measured(ran: cuda.Ran) -> tuple[str, ...]:
    nodes = ", ".join(f"{name} {count}" for name, count in ran.nodes.items())
    rest = ", ".join(f"{name} {count}" for name, count in ran.elsewhere.items())
    lines = [f"nodes by provider: {nodes}" + (f"; left to others: {rest}" if rest else "")]
    if ran.timing:
        lines.append(f"{ran.timing.median_ms:.3f} ms a run ({ran.timing.how})")
    return tuple(lines)
