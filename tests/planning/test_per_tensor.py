"""Products whose weights have one scale and the type of activations, as NNAPI and QNN want them."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.emit.ort_file import write_engine
from qcompile.errors import PlanError
from qcompile.graph.digest import model_digest
from qcompile.graph.runner import run_passes
from qcompile.passes.insert_qdq import InsertQdq
from qcompile.passes.lower_opset import LowerOpset
from qcompile.plan import Plan, TensorPlan
from qcompile.planning.followed import check_plan
from qcompile.planning.partition import predict
from qcompile.planning.plan import activations_of, assemble
from qcompile.planning.select import select
from qcompile.planning.wishes import Wishes
from qcompile.runtime.ort import Session
from qcompile.targets.ort_mobile import ORT_MOBILE
from qcompile.targets.providers import PROVIDERS
from tests.planning.tools import HOLDS, feeds_of, graph_of, minmax, normal

BODY = "[g] h = Gemm <transB=1> (x, w, b)\n[r] p = Relu(h)\n[m] y = MatMul(p, v)"


def net(bias: float = 1.0) -> ir.Model:
    w, v = normal(1, 24, 16) + np.float32(0.5), normal(2, 24, 8)
    return graph_of("float[4, 16] x", BODY, w=w, v=v, b=normal(3, 24, scale=bias))


def planned(model: ir.Model, name: str) -> Plan:
    target = ORT_MOBILE.on(name)
    selection = select(model, target, "int8", Wishes())
    choices = minmax(model, activations_of(selection), feeds_of(model))
    return assemble(model, selection, target, name, "int8", choices)


@pytest.mark.parametrize("name", ["nnapi", "qnn"])
def test_weights_are_uint8_with_one_scale_and_the_provider_takes_them(name, tmp_path: Path):
    model = net()
    plan = planned(model, name)
    for weight in "wv":
        tensor = plan.tensors[weight]
        assert (tensor.type, tensor.axis, len(tensor.scale)) == ("uint8", None, 1)
        assert 0 < tensor.zero_point[0] < 255
    bias = plan.tensors["b"]
    product = np.float32(plan.tensors["x"].scale[0]) * np.float32(plan.tensors["w"].scale[0])
    assert (bias.type, bias.axis, bias.scale) == ("int32", None, [float(product)])
    check_plan(plan, model, model_digest(model), ORT_MOBILE.on(name), name, "int8")
    written = model.clone()
    steps = [InsertQdq(plan=plan), LowerOpset()]
    run_passes(written, steps, holds=HOLDS | LowerOpset.needs)
    found = predict(written, PROVIDERS[name])
    assert {"g", "m"}.isdisjoint(found.fallbacks)
    path = tmp_path / "model.onnx"
    write_engine(written, path)
    feeds = feeds_of(model)[0]
    exact, fused = Session(model).run(feeds)["y"], Session(path).run(feeds)["y"]
    plain = Session(path, optimize=False).run(feeds)["y"]
    step = plan.tensors["y"].scale[0]
    np.testing.assert_allclose(fused, plain, atol=1.01 * step)
    assert np.linalg.norm(plain - exact) < 0.03 * np.linalg.norm(exact)


def test_a_bias_too_large_for_its_codes_widens_the_one_scale():
    model = net(1e9)
    plan = planned(model, "nnapi")
    codes = 1e9 / plan.tensors["b"].scale[0]
    assert 2**27 < codes * 3 < 2**31
    assert plan.tensors["w"].scale[0] > 1


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"type": "int8", "zero_point": [0]}, "weight must be uint8 on this target, not int8"),
        ({"axis": 0, "scale": [1.0] * 24, "zero_point": [0] * 24}, "must have one scale"),
    ],
)
def test_an_edit_that_does_not_fit(update, message):
    model = net()
    plan = planned(model, "nnapi")
    tensor = TensorPlan.model_validate(plan.tensors["w"].model_dump() | update)
    edited = plan.model_copy(update={"tensors": plan.tensors | {"w": tensor}})
    with pytest.raises(PlanError, match=f"tensor w: .*{message}"):
        check_plan(edited, model, model_digest(model), ORT_MOBILE.on("nnapi"), "nnapi", "int8")
