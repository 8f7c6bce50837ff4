"""Plans for the real models: a reason for every node, and every int8 kernel really obtained."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qcompile.calibrate.collect import collect
from qcompile.frontend import load
from qcompile.graph.runner import run_passes
from qcompile.graph.walk import all_nodes
from qcompile.passes.fence_float_nodes import FenceFloatNodes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.planning.plan import activations_of, assemble
from qcompile.planning.ranges import Choice, by_method
from qcompile.planning.select import select
from qcompile.planning.wishes import Wishes
from qcompile.progress import Silent
from qcompile.recipe import Calibration
from qcompile.runtime.made_up import made_up_feeds
from qcompile.runtime.ort import kernel_nodes
from qcompile.samples import InMemory
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.target import Role
from tests.assets import asset, needs_assets

INT8_NODES = {
    "dscnn_kws": 9,
    "espcn_x3": 4,
    "espnetv2_s2_voc": 40,
    "kwt1_kws": 40,
    "magika_v3_3": 2,
    "mobilenetv1_025_vww": 27,
    "resnet20_cifar10": 19,
    "silero_vad_16k": 1,
    "squeezenet10_dc_imagenet": 26,
    "stories260k": 30,
    "textlm5m": 40,
    "yolox_nano_coco": 60,
}
"""At least so many nodes are int8: an empty plan would pass the other checks."""

SILERO = {
    "input": np.random.default_rng(0).standard_normal((1, 576)).astype(np.float32),
    "state": np.zeros((2, 1, 128), np.float32),
    "sr": np.asarray(16000, np.int64),
}
"""Its reflecting Pad refuses a made-up input of one element."""


@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize("name", INT8_NODES)
def test_static_plan_gets_every_kernel(name):
    path: Path = asset("models", f"{name}.onnx")
    loaded = load(path, "ort-cpu", "int8", threads=2, dump_dir=None, progress=Silent())
    chosen = select(loaded.model, ORT_CPU, "int8", Wishes())
    nodes = {node.name: node for node, _ in all_nodes(loaded.model)}
    assert set(chosen.nodes) == set(nodes), "every node is in the plan"
    assert all(entry.reason.strip() for entry in chosen.nodes.values())
    assert all(entry.op == nodes[node].op_type for node, entry in chosen.nodes.items())
    precisions = Counter(entry.precision for entry in chosen.nodes.values())
    assert precisions["int8"] >= INT8_NODES[name]
    made_up = made_up_feeds(loaded.session.inputs)
    samples = InMemory([SILERO if name == "silero_vad_16k" else made_up])
    names = activations_of(chosen)
    statistics = collect(loaded.model, samples, names, histograms=False)
    ranges = by_method("minmax", names, statistics, Calibration())
    choices = {key: Choice(*found, "minmax", {}) for key, found in ranges.items()}
    plan = assemble(loaded.model, chosen, ORT_CPU, "vnni", "int8", choices)
    written = loaded.model.clone()
    run_passes(written, [InsertQdq(plan=plan), FenceFloatNodes()], holds=loaded.holds)
    obtained = {kernel.name: kernel.op for kernel in kernel_nodes(written)}
    missing = {
        node: obtained.get(node, "nothing")
        for node, entry in chosen.nodes.items()
        if entry.precision == "int8"
        and (rule := ORT_CPU.static[entry.op]).role in (Role.WEIGHTED, Role.FOLLOWER)
        and obtained.get(node) not in rule.kernels
    }
    assert not missing


@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize("name", ["kwt1_kws", "stories260k", "silero_vad_16k", "dscnn_kws"])
def test_dynamic_plan_gives_every_node_a_reason(name):
    path: Path = asset("models", f"{name}.onnx")
    loaded = load(path, "ort-cpu", "int8", threads=2, dump_dir=None, progress=Silent())
    chosen = select(loaded.model, ORT_CPU, "int8-dynamic", Wishes())
    assert all(entry.reason.strip() for entry in chosen.nodes.values())
    int8 = [entry.op for entry in chosen.nodes.values() if entry.precision != "float"]
    assert set(int8) <= {"MatMul", "Gemm"}
    assert len(int8) > 10 or name not in ("kwt1_kws", "stories260k")
