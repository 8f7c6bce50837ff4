"""Kernels by the node they stand for, as ONNX Runtime names them on this host."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.emit.ort_file import write_engine
from qcompile.errors import EngineError
from qcompile.graph.fused import owners
from qcompile.runtime.profiled import kernel_times
from tests.planning.tools import feeds_of, graph_of, normal, quantize_graph

PICTURE = "float[1, 16, 14, 14] x"
BLOCK = """
[c1] a = Conv <auto_pad="SAME_UPPER"> (x, v)
[r1] b = Relu(a)
[c2] c = Conv <auto_pad="SAME_UPPER"> (b, w)
[add] d = Add(c, x)
[r2] e = Relu(d)
[mean] y = GlobalAveragePool(e)
"""


def block() -> ir.Model:
    weights = {name: normal(i, 16, 16, 3, 3, scale=0.1) for i, name in enumerate("vw")}
    return graph_of(PICTURE, BLOCK, **weights)


def timed(model: ir.Model, graph: ir.Graph, feeds: dict, path: Path) -> dict[str, float]:
    write_engine(model, path)
    found = kernel_times(path, feeds, seconds=0.05)
    named = owners(graph, [(kernel.name, kernel.op) for kernel in found])
    assert all(kernel.ms >= 0 for kernel in found)
    return {owner: kernel.ms for owner, kernel in zip(named, found, strict=True) if owner}


def test_convolutions_are_found_behind_what_is_fused_into_them(tmp_path):
    model = block()
    feeds = feeds_of(model, 1)[0]
    found = timed(model, model.graph, feeds, tmp_path / "float.onnx")
    assert found.keys() >= {"c1", "c2", "mean"}
    assert found["c1"] > 0


def test_kernels_on_codes_are_found_by_name(tmp_path):
    model = block()
    done = quantize_graph(model)
    feeds = feeds_of(model, 1)[0]
    assert timed(done.model, model.graph, feeds, tmp_path / "int8.onnx").keys() >= {"c1", "c2"}


def test_fusions_of_products_are_found_by_the_name_before_them():
    body = "[m] a = MatMul(x, x)\n[s] y = Mul(a, k)"
    graph = graph_of("float[7, 7] x", body, k=np.float32([0.5])).graph
    kernels = [("m/MatmulTransposeFusion//MatMulScaleFusion/", "FusedMatMul"), ("Reorder", "R")]
    assert owners(graph, kernels) == ["m", ""]


def test_a_model_that_does_not_run_is_one_line(tmp_path):
    model = block()
    write_engine(model, tmp_path / "net.onnx")
    with pytest.raises(EngineError, match=r"^net\.onnx: "):
        kernel_times(tmp_path / "net.onnx", {})
