"""``build_engine.py``, the half that runs, times and judges.

The builder is real; what loads and runs an engine without a GPU is not (``stand_in/tensorrt.py``).
"""

import ast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompile.compare.end_to_end import compare
from qcompile.emit.tensorrt_files import EngineOptions, EngineRequest, write_engine_files
from qcompile.progress import Silent
from qcompile.recipe import Gates
from qcompile.runtime.ort import Session
from qcompile.samples import InMemory
from qcompile.targets.profiles import Profile
from tests.emit.bundles import STAND_IN, bundle, cuda_stand_in, run
from tests.emit.nets import convolution, float_model, heavy, samples
from tests.emit.tensorrt_names.checker import names_of


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    return {"LD_LIBRARY_PATH": str(cuda_stand_in(tmp_path_factory.getbasetemp()))}


def test_figures_are_those_of_the_comparison(tmp_path, cuda):
    folder = bundle(tmp_path / "b", gates=Gates(min_sqnr=20, min_agreement=0.5, max_drop=0.1))
    done, result = run(folder, **cuda)
    assert done.returncode == 0, done.stderr
    reference, engine = float_model(tmp_path), Session(folder / "model.onnx")
    wanted = compare(reference.run, engine.run, samples(), progress=Silent())
    found, expected = result["outputs"][0], wanted.outputs[0]
    assert 25 < found["sqnr_db"] < 60
    for name in ("sqnr_db", "cosine", "max_abs_error", "relative_l2"):
        assert found[name] == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert result["agreements"][0]["share"] == wanted.agreements[0].share
    assert result["agreements"][0]["count"] == 12
    assert [(gate["name"], gate["passed"]) for gate in result["gates"]] == [
        ("min-sqnr", True),
        ("min-agreement", True),
    ]
    assert result["not_judged"] == ["max_drop"]
    assert result["device"] == {"name": "stand-in", "sm": 87}
    assert result["layers"][0]["inputs"][0]["dtype"] == "int8"
    assert result["timing"]["median_ms"] > 0
    assert result["timing"]["runs"] >= 20
    assert (folder / "layers.json").exists()
    assert "gate max-drop: not judged here" in done.stdout
    assert "6 samples against the float model" in done.stdout


def test_an_engine_of_every_option_is_loaded_as_it_must_be(tmp_path, cuda):
    """Host code allowed, weights given back, a budget for those that are streamed."""
    options = EngineOptions(
        workspace_bytes=1 << 30,
        optimization_level=1,
        version_compatible=True,
        hardware_compatible="ampere+",
        weight_streaming=True,
        strip=True,
        refit=True,
    )
    folder = bundle(tmp_path / "b", options=options, float_model="float.onnx")
    done, result = run(folder, **cuda)
    assert done.returncode == 0, done.stderr
    assert result["outputs"][0]["sqnr_db"] > 25
    assert result["speed"]["ratio"] > 0, "the float model is not stripped"


def test_a_missed_gate_ends_with_3_and_keeps_the_engine_apart(tmp_path, cuda):
    folder = bundle(tmp_path / "b", gates=Gates(min_sqnr=90))
    done, result = run(folder, **cuda)
    assert (done.returncode, result["status"]) == (3, "gate missed")
    assert not (folder / "model.engine").exists()
    assert (folder / "model.engine.failed").exists()
    assert result["engine"]["name"] == "model.engine.failed"
    assert "gate min-sqnr 90.0: MISSED" in done.stdout


def test_speed_is_judged_against_the_float_model_in_the_bundle(tmp_path, cuda):
    """The float model is 120 products heavier than the engine."""
    gates = Gates(min_speedup=1.5)
    folder = bundle(tmp_path / "b", gates=gates, float_model="slow.onnx")
    onnx.save(heavy(convolution(codes=False), times=120), folder / "slow.onnx")
    done, result = run(folder, **cuda)
    assert done.returncode == 0, done.stderr
    speed, (gate,) = result["speed"], result["gates"]
    assert speed["float_ms"] > speed["engine_ms"] > 0
    assert speed["interval"][0] <= speed["ratio"] <= speed["interval"][1]
    assert speed["pairs"] >= 20
    assert (gate["name"], gate["measured"], gate["passed"]) == ("min-speedup", speed["ratio"], True)
    assert (result["not_judged"], result["outputs"][0]["sqnr_db"] > 25) == ([], True)
    assert "built the float model, too" in done.stdout


def test_a_gate_that_nothing_can_judge_is_missed(tmp_path, cuda):
    folder = bundle(tmp_path / "b", gates=Gates(min_agreement=0.1), data=InMemory([]))
    done, result = run(folder, **cuda)
    assert done.returncode == 3
    assert result["gates"][0]["note"] == "no sample with class scores was compared"
    assert "holds no samples" in done.stdout


def test_damaged_samples_are_refused(tmp_path, cuda):
    folder = bundle(tmp_path / "b")
    (folder / "samples.npz").write_bytes(b"PK\x03\x04 and no more")
    done, result = run(folder, **cuda)
    assert done.returncode == 2
    assert "samples.npz" in result["message"]
    assert "copy the bundle again" in result["message"]
    assert not (folder / "model.engine").exists()


def test_a_sample_that_the_engine_does_not_take_is_refused(tmp_path, cuda):
    profiles = {"x": Profile((1, 16, 8, 8), (5, 16, 8, 8), (8, 16, 8, 8))}
    folder = bundle(tmp_path / "b", data=samples(1, batch=5), profiles=profiles)
    done, result = run(folder, **cuda)  # the stand-in takes 4 at most
    assert (done.returncode, "engine" in result) == (2, False)
    assert result["message"] == "x: shape (5, 16, 8, 8) is outside the profile"


def ports_model(path, nodes, inputs, outputs):
    """Save a model of ports given as name to type and shape."""

    def listed(ports):
        return [helper.make_tensor_value_info(name, *port) for name, port in ports.items()]

    graph = helper.make_graph(nodes, "net", listed(inputs), listed(outputs))
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    return Session(path, optimize=False)


def judged(folder, session, feeds, cuda):
    request = EngineRequest(
        "model.onnx", session.inputs, tuple(p.name for p in session.outputs), 11
    )
    write_engine_files(folder, request, InMemory([feeds]), session.run, Silent())
    done, result = run(folder, **cuda)
    assert done.returncode == 0, done.stderr
    return {output["name"]: output for output in result["outputs"]}


def test_int64_halves_and_scalars_pass_whole(tmp_path, cuda):
    nodes = [
        helper.make_node("Add", ["t", "t"], ["twice"], "add"),
        helper.make_node("Mul", ["f", "s"], ["g"], "scaled"),
        helper.make_node("Cast", ["g"], ["h"], "cast", to=TensorProto.FLOAT16),
    ]
    session = ports_model(
        tmp_path / "model.onnx",
        nodes,
        {
            "t": (TensorProto.INT64, [1, 3]),
            "f": (TensorProto.FLOAT, [1, 3]),
            "s": (TensorProto.FLOAT, []),
        },
        {"twice": (TensorProto.INT64, [1, 3]), "h": (TensorProto.FLOAT16, [1, 3])},
    )
    feeds = {"t": np.array([[1 << 40, -5, 7]]), "f": np.array([[1, 0.1, 6000]], np.float32)}
    feeds["s"] = np.array(3.0, np.float32)
    outputs = judged(tmp_path, session, feeds, cuda)
    assert outputs["twice"]["equal"] == 1.0
    assert outputs["twice"]["dtype"] == "int64"
    assert outputs["h"]["identical"]


def test_an_output_whose_size_only_the_run_tells(tmp_path, cuda):
    """TensorRT for RTX has no such operator: it builds a like model, the stand-in runs this one."""
    ports = {"x": (TensorProto.FLOAT, [2, 3])}, {"places": (TensorProto.INT64, [2, None])}
    nonzero = tmp_path / "nonzero.onnx"
    session = ports_model(nonzero, [helper.make_node("NonZero", ["x"], ["places"])], *ports)
    cast = helper.make_node("Cast", ["x"], ["places"], to=TensorProto.INT64)
    ports_model(tmp_path / "model.onnx", [cast], *ports)
    feeds = {"x": np.array([[0, 1, 0], [2, 0, 3]], np.float32)}
    outputs = judged(tmp_path, session, feeds, {**cuda, "STAND_IN_MODEL": str(nonzero)})
    assert outputs["places"]["equal"] == 1.0
    assert outputs["places"]["mismatched"] == 0


def test_the_stand_in_has_nothing_that_tensorrt_lacks():
    tree = ast.parse((STAND_IN / "tensorrt.py").read_text("utf-8"))
    for version in ("10.3", "10.16", "11.4"):
        classes = names_of(version)["classes"]
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                methods = {m.name for m in node.body if isinstance(m, ast.FunctionDef)}
                assert {m for m in methods if m[0] != "_"} <= set(classes[node.name]), node.name
