"""prepare, train, convert: the trained graph and the compiled graph agree."""

import copy
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.qat import library  # noqa: F401 (skips without torch)

import torch  # isort: skip

from qcompile import qat
from qcompile.data import Split
from qcompile.devices import device_of, types_of
from qcompile.errors import ModelError, RecipeError
from qcompile.frontend import load
from qcompile.progress import Silent, StageLog
from qcompile.qat.exported import export_module
from qcompile.qat.libraries import quiet
from qcompile.recipe import Calibration, Recipe
from qcompile.remedied import untouched
from qcompile.samples import InMemory, Subset
from qcompile.targets import target_named
from qcompile.w8a8 import W8A8
from tests.qat import nets

RECIPES = {
    "ort-cpu": Recipe(cpu="vnni", keep_accuracy=False),
    "tensorrt": Recipe(target="tensorrt", sm=(87,), keep_accuracy=False),
}
CASES = [(kind, target) for kind in nets.SHAPES for target in RECIPES]


def trained(kind, target, **options):
    """Prepare a network and take two steps of an optimizer."""
    net, x = nets.lively(kind)
    before = copy.deepcopy(net.state_dict())
    log = Silent()
    model = qat.prepare(net, (x,), RECIPES[target], calibration=[x], progress=log, **options)
    assert log.notices == []
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(2):
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return model.eval(), net, x


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def case(request, tmp_path_factory):
    kind, target = request.param
    model, net, x = trained(kind, target)
    path = qat.convert(model, tmp_path_factory.mktemp("qat") / "trained.onnx")
    return model, net, x, target, path


def run_plain(path, x):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.slow
def test_engine_gives_what_torch_gives(case):
    model, _, x, _, path = case
    onnx.checker.check_model(path, full_check=True)
    fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = qat.converted(model)(fresh).numpy()
    np.testing.assert_allclose(run_plain(path, fresh), wanted, atol=1e-5)


@pytest.mark.slow
def test_rounding_stands_where_a_build_places_it(case, tmp_path):
    model, net, x, target, path = case
    assert positions(ir.load(path)) == positions(built(net, x, target, tmp_path))
    assert model.fake_quants()


def built(net, x, target, folder):
    """Return the graph that a build from the float model writes."""
    file = folder / "float.onnx"
    with quiet():
        torch.onnx.export(export_module(net, (x,)), dynamo=True, verbose=False).save(file)
    recipe = RECIPES[target].model_copy(update={"calibration": Calibration(method="minmax")})
    log, table = StageLog(), target_named(target)
    device = device_of(recipe, table, log)
    loaded = load(file, target, "int8", threads=1, dump_dir=None, progress=log)
    feeds = InMemory([{loaded.inputs[0].name: x.numpy()}])
    data = Split(Subset(feeds, [0]), None, None)
    types = types_of(recipe, table, device, "fp32")
    about = data, recipe, table, device, types, None, None, log
    return W8A8(loaded, untouched(loaded, recipe), *about).quantize(None).model


def positions(model):
    """Return what is rounded, for which readers, and which constants are codes."""
    rounded = {
        (node.inputs[0].name, frozenset(reader.name for reader in behind(node)))
        for node in model.graph
        if node.op_type == "QuantizeLinear"
    }
    codes = {
        node.inputs[0].name
        for node in model.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0].is_initializer()
    }
    assert rounded
    assert codes
    return rounded, codes


def behind(node):
    pairs = [use.node for use in node.outputs[0].uses()]
    return [use.node for pair in pairs for use in pair.outputs[0].uses()]


@pytest.mark.slow
def test_learned_scales_of_few_bits(tmp_path):
    rounding = qat.Rounding(weights=4, activations=4, learned=True)
    model, _, x = trained(nets.Depthwise, "ort-cpu", rounding=rounding)
    path = qat.convert(model, tmp_path / "few.onnx")
    graph = ir.load(path).graph
    makers = [node for node in graph if node.op_type == "QuantizeLinear"]
    kinds = {node.inputs[2].dtype for node in makers}
    assert kinds == {ir.DataType.UINT8, ir.DataType.UINT4}
    codes = [
        value.const_value.numpy()
        for name, value in graph.initializers.items()
        if name.endswith(".codes") and value.const_value.shape.rank() == 4
    ]
    assert [np.abs(c.astype(int)).max() <= 7 for c in codes] == [False, True, True]
    with torch.no_grad():
        wanted = qat.converted(model)(x).numpy()
    near = np.isclose(run_plain(path, x), wanted, atol=1e-4)
    assert near.mean() > 0.9  # a code on the border may tip, and 4 bits make it seen


@pytest.mark.slow
def test_batch_norms_freeze_and_count():
    net, x = nets.lively(nets.Residual)
    model = qat.prepare(net, (x,), RECIPES["tensorrt"], calibration=[x])
    mean = model.graph.get_buffer("stem_norm.running_mean")
    start = mean.clone()
    with torch.no_grad():
        before = net.stem(x).mean((0, 2, 3))
        model(x)
    moved = mean - start
    torch.testing.assert_close(moved, 0.03 * (before - start), atol=2e-3, rtol=0.1)
    model.freeze_batch_norm()
    frozen = mean.clone()
    model(x)
    assert torch.equal(mean, frozen)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(2 * x), net(2 * x))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            {"recipe": Recipe(scheme="fp16", target="tensorrt")},
            RecipeError,
            "scheme int8, not fp16",
        ),
        ({"target": "nowhere"}, RecipeError, "nowhere"),
        ({"example_inputs": ()}, ModelError, "example_inputs: give one tensor"),
        ({"model": torch.nn.ReLU()}, ModelError, "has no int8 kernel for anything"),
    ],
)
def test_bad_input_is_named(options, error, said):
    usual = {"model": torch.nn.Linear(4, 4), "example_inputs": (torch.ones(2, 4),)}
    with pytest.raises(error, match=said):
        qat.prepare(**{**usual, **options})


def test_a_module_that_cannot_be_traced_is_named():
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"Branch: torch\.export cannot trace it"):
        qat.prepare(Branch(), (torch.ones(2, 4),))


def test_the_package_imports_no_torch():
    code = "import sys, qcompile, qcompile.qat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
