"""Which values are equalized, what becomes of the weights, and what is refused."""

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.frontend import load
from qcompile.graph.runner import run_passes
from qcompile.numerics.grids import affine_grid, dequantize, quantize
from qcompile.numerics.metrics import error_sums
from qcompile.passes.rescale_channels import RescaleChannels
from qcompile.planning.equalize import equalized
from qcompile.planning.switchboard import judged_values
from qcompile.progress import Silent
from qcompile.remedies import Remedies
from qcompile.runtime.ort import Session
from tests.assets import asset, needs_assets
from tests.planning.tools import HOLDS, feeds_of, graph_of, normal

SEPARABLE = (
    "[a] p = Conv(x, w1, b1)\n[r1] q = Relu(p)\n"
    "[d] s = Conv <group=8, pads=[1, 1, 1, 1]> (q, wd, bd)\n[r2] t = Relu(s)\n"
    "[c] y = Conv(t, w2)"
)


def factors(seed: int, count: int, octaves: float = 5) -> np.ndarray:
    return np.exp2(np.random.default_rng(seed).uniform(-octaves, octaves, count)).astype(np.float32)


def uneven(seed: int, *shape: int) -> np.ndarray:
    """Weights, or a bias, whose output channels differ by orders of magnitude."""
    by_row = factors(seed // 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return normal(seed, *shape) * by_row


def weights(last: int = 3) -> dict[str, np.ndarray]:
    return {
        "w1": uneven(0, 8, 4, 1, 1),
        "b1": uneven(1, 8),
        "wd": uneven(2, 8, 1, 3, 3),
        "bd": uneven(3, 8),
        "w2": normal(5, last, 8, 1, 1),
    }


def separable(body: str = SEPARABLE):
    return graph_of("float[2, 4, 6, 6] x", body, **weights())


def rescaled(model, found):
    copy = model.clone()
    (run,) = run_passes(copy, [RescaleChannels(remedies=Remedies(rescaled=found))], holds=HOLDS)
    assert not run.refusals
    return copy


def per_tensor(model):
    """Round the weight of each Conv with one scale."""
    copy = model.clone()
    for node in copy.graph:
        if node.op_type == "Conv":
            value = node.inputs[1]
            array = value.const_value.numpy()
            scale, zero = affine_grid(float(array.min()), float(array.max()), 0, 255)
            grid = np.float32(scale), np.array(zero), None
            rounded = dequantize(quantize(array, *grid, "uint8"), *grid)
            value.const_value = ir.tensor(rounded)
    return copy


def error(model, rounded):
    feeds = feeds_of(model)[0]
    exact, found = (Session(m).run(feeds)["y"] for m in (model, rounded))
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def test_a_separable_convolution_survives_one_scale_a_tensor():
    model = separable()
    found, refused = equalized(model, {"a", "d", "c"})
    assert set(found) == {"q", "t"}
    assert refused == {}
    assert all(r.remedy == "equalize" and r.axis == 1 for r in found.values())
    better = rescaled(model, found)
    assert error(model, better) < 1e-5
    assert error(model, per_tensor(better)) < 0.2 * error(model, per_tensor(model))


def test_ranges_meet():
    model = separable()
    for name in ("b1", "bd"):
        model.graph.initializers[name].const_value = ir.tensor(np.zeros(8, np.float32))
    better = rescaled(model, equalized(model, {"a", "d", "c"})[0])
    weights = {
        n.name: np.abs(n.inputs[1].const_value.numpy()) for n in better.graph if n.name in "adc"
    }
    before, middle = (weights[name].max(axis=(1, 2, 3)) for name in "ad")
    behind = weights["c"].max(axis=(0, 2, 3))
    np.testing.assert_allclose(before / before[0], middle / middle[0], rtol=0.01)
    np.testing.assert_allclose(middle / middle[0], behind / behind[0], rtol=0.01)


def test_layers_that_are_not_asked_for_are_left():
    assert set(equalized(separable(), {"d"})[0]) == {"q"}
    assert equalized(separable(), set()) == ({}, {})


def test_refusals_say_why():
    relu6 = SEPARABLE.replace("q = Relu(p)", "q = Clip(p, lo, hi)")
    model = graph_of(
        "float[2, 4, 6, 6] x",
        relu6.replace("y = Conv(t, w2)", "z = Conv(t, w2)\n[e] y = Add(t, z)"),
        lo=np.zeros((), np.float32),
        hi=np.full((), 6, np.float32),
        **weights(last=8),
    )
    found, refused = equalized(model, {"a", "d", "c"})
    assert found == {}
    assert refused == {
        "Clip makes it: its bound would have to differ by channel": 1,
        "others than layers read the value": 1,
    }


def test_linear_layers_and_flattened_pools_are_pairs():
    model = graph_of(
        "float[2, 4, 6, 6] x",
        "[a] p = Conv(x, w1, b1)\n[g] q = GlobalAveragePool(p)\n[f] v = Flatten(q)\n"
        "[m] h = Gemm(v, u, c)\n[r] k = LeakyRelu(h)\n[n] y = MatMul(k, o)",
        w1=uneven(0, 8, 4, 1, 1),
        b1=uneven(1, 8),
        u=normal(3, 8, 5),
        c=normal(4, 5),
        o=uneven(5, 5, 3),
    )
    found, refused = equalized(model, {"a", "m", "n"})
    assert {name: r.axis for name, r in found.items()} == {"v": -1, "k": -1}
    assert refused == {}
    assert error(model, rescaled(model, found)) < 1e-5


@needs_assets
@pytest.mark.slow
def test_an_uneven_mobilenet_gets_its_weights_back():
    """The channels between its layers are divided by 1/16 to 16, which changes nothing in float."""
    path = asset("models", "mobilenetv1_025_vww.onnx")
    model = load(path, "ort-cpu", "int8", threads=1, dump_dir=None, progress=Silent()).model
    source = model.clone()
    nodes = [node.name for node in model.graph if node.op_type in ("Conv", "Gemm")]
    even, _ = equalized(model, nodes)
    apart = {
        name: entry.model_copy(update={"scale": factors(number, len(entry.scale), 4).tolist()})
        for number, (name, entry) in enumerate(even.items())
    }
    model = rescaled(model, apart)
    better = rescaled(model, equalized(model, nodes)[0])
    inputs = np.random.default_rng(0).uniform(0, 1, (8, 96, 96, 3)).astype(np.float32)
    logits = judged_values(source.graph)[0].name

    def noise(other) -> float:
        exact, found = (
            Session(with_output(m, logits)).run({"input": inputs}) for m in (source, other)
        )
        return error_sums(exact[logits], found[logits]).relative_l2 ** 2

    assert noise(model) < 1e-8
    assert noise(better) < 1e-8
    lost, kept = noise(per_tensor(model)), noise(per_tensor(better))
    print(f"noise of weights with one scale: uneven {lost:.2g}, equalized {kept:.2g}")
    assert kept < 0.05 * lost


def with_output(model, name: str):
    copy = model.clone()
    copy.graph.outputs[:] = [v for node in copy.graph for v in node.outputs if v.name == name]
    return copy
