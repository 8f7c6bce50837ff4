"""Torch modules become ONNX files that compute the same; what cannot is refused in one line."""

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the extra 'torch' has it")

from qcompile.errors import DataError, ModelError, QcompileError, RecipeError  # noqa: E402
from qcompile.pipeline import build  # noqa: E402
from qcompile.progress import Silent  # noqa: E402
from qcompile.source.torch_program import read_program  # noqa: E402
from qcompile.tracing import export  # noqa: E402
from tests.assets import ROOT  # noqa: E402

NETS = Path(__file__).with_name("nets.py")
IMAGE = (1, 1, 8, 8)


def named(function: str) -> str:
    return f"{NETS}:{function}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def exported(folder):
    """The conv net with an open batch, and its report."""
    return export(named("net"), folder / "net.onnx", dynamic_axes=["batch"])


def module_of(function: str):
    from qcompile.functions import function_named

    return function_named(named(function), ModelError)()[0].eval()


def outputs(path: Path, **feeds) -> list[np.ndarray]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(array) for name, array in feeds.items()})


def shapes(ports) -> dict[str, tuple]:
    return {port.name: port.shape for port in ports}


# -- what is exported --------------------------------------------------------------------------


def test_names_and_axes_are_the_users(exported, folder):
    assert shapes(exported.traced.inputs) == {"image": ("batch", 1, 8, 8)}
    assert shapes(exported.traced.outputs) == {"logits": ("batch", 10), "best": ("batch",)}
    model = onnx.load(folder / "net.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "head.weight" in {weight.name for weight in model.graph.initializer}
    assert any(node.name.startswith("head/") for node in model.graph.node)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_the_file_computes_what_the_module_does(exported, folder, batch):
    image = torch.randn(batch, *IMAGE[1:], generator=torch.Generator().manual_seed(batch))
    expected = module_of("net")(image)
    logits, best = outputs(folder / "net.onnx", image=image)
    np.testing.assert_allclose(logits, expected["logits"].detach(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(best, expected["best"])


def test_the_report_says_how_far_and_on_what(exported):
    traced = exported.traced
    assert 0 < traced.relative_l2 < 1e-6 < traced.limit
    assert traced.compared[0] == IMAGE
    assert {shape[0] for shape in traced.compared} >= {1, 3}
    assert traced.source == named("net")
    assert traced.torch == torch.__version__


def test_nothing_tells_of_the_machine(exported, folder):
    content = (folder / "net.onnx").read_bytes()
    for word in (b"stack_trace", b"nets.py", b"site-packages", b"pkg.torch"):
        assert word not in content


def test_the_same_module_gives_the_same_bytes(exported, folder, tmp_path):
    again = export(named("net"), tmp_path / "other.onnx", dynamic_axes=["batch"])
    assert again.sha256 == exported.sha256


def test_nested_arguments_are_named_by_their_place(tmp_path):
    nets = module_of("branch").__class__.__module__
    kind = getattr(__import__("sys").modules[nets], "Nested")  # noqa: B009
    given = {"pair": ({"a": torch.ones(2, 3)}, torch.arange(6.0).reshape(2, 3)), "offset": 4}
    report = export(kind(), tmp_path / "n.onnx", example_inputs=given, dynamic_axes=["rows"])
    assert shapes(report.traced.inputs) == {"pair.0.a": ("rows", 3), "pair.1": ("rows", 3)}
    a, b = np.ones((5, 3), np.float32), np.full((5, 3), 2, np.float32)
    first, second = outputs(tmp_path / "n.onnx", **{"pair.0.a": a, "pair.1": b})
    np.testing.assert_array_equal(first, np.full((5, 3), 7))
    np.testing.assert_array_equal(second, b)


def test_a_module_in_training_mode_is_traced_in_eval_mode_and_given_back(tmp_path):
    module = module_of("net").train()
    export(module, tmp_path / "net.onnx", example_inputs=torch.randn(2, 1, 8, 8))
    assert module.training
    nodes = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert "BatchNormalization" not in nodes


def test_shapes_give_inputs_axes_and_bounds(tmp_path):
    heard = Silent()
    report = export(
        named("bare"),
        tmp_path / "net.onnx",
        shapes="image:1x1x8x8,4x1x8x8,6x1x8x8",
        progress=heard,
    )
    assert shapes(report.traced.inputs) == {"image": ("batch", 1, 8, 8)}
    batches = [shape[0] for shape in report.traced.compared]
    assert batches[:4] == [4, 4, 1, 6]
    assert "made-up inputs of --shapes: image float32" in heard.notices[0]


def test_the_first_sample_is_traced_on(tmp_path):
    report = export(
        named("bare"), tmp_path / "net.onnx", calib=ROOT / "samples" / "digits" / "calib.npz"
    )
    assert shapes(report.traced.inputs) == {"image": IMAGE}


def test_a_size_that_the_code_restricts_is_told(tmp_path):
    heard = Silent()
    report = export(
        named("limited"), tmp_path / "x.onnx", dynamic_axes=["x:0=rows"], progress=heard
    )
    assert {shape[0] for shape in report.traced.compared} >= {1, 4}
    assert any("axis rows: the trace holds for sizes of 1 to 4" in n for n in heard.notices)


# -- bad input ---------------------------------------------------------------------------------

BAD = [
    ("branch", {}, ModelError, ["nets.py:28 `if x.sum() > 0:`", "torch.where"]),
    ("fixed", {"dynamic_axes": ["batch"]}, ModelError, ["dimension 0 of input x", "size to 2"]),
    ("wrong_shape", {}, ModelError, ["fails on the example inputs at nets.py", "3 channels"]),
    ("no_module", {}, ModelError, ["gives dict, not an nn.Module"]),
    ("failing", {}, ModelError, ["the function fails at nets.py", "weights.pt"]),
    ("absent", {}, ModelError, ["cannot be imported", "absent"]),
    ("bare", {}, DataError, ["no example inputs", "--shapes", "--calib"]),
    ("bare", {"shapes": "img:1x1x8x8,1x1x8x8,2x1x8x8"}, DataError, ["do not fit forward(image)"]),
    ("net", {"shapes": "image:1x8,1x8,2x8"}, RecipeError, ["2 dimensions", "has 4"]),
    ("net", {"dynamic_axes": ["image:7=b"]}, RecipeError, ["no dimension 7"]),
    ("net", {"dynamic_axes": ["x:0=b"]}, RecipeError, ["no input 'x'", "image"]),
    ("net", {"dynamic_axes": ["image:b"]}, RecipeError, ["'b' is no axis"]),
    ("net", {"dynamic_axes": ["9b"]}, RecipeError, ["'9b' is no name"]),
]


@pytest.mark.parametrize(("function", "options", "kind", "named_parts"), BAD)
def test_bad_input_is_refused_in_one_line(function, options, kind, named_parts, tmp_path):
    with pytest.raises(kind) as caught:
        export(named(function), tmp_path / "x.onnx", **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in named_parts:
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_translation_is_named_with_its_line(tmp_path):
    with pytest.raises(ModelError, match=r"aten\.linalg_eig.*nets\.py:47 `return torch\.linalg"):
        export(named("eigenvalues"), tmp_path / "x.onnx")


def test_an_export_that_differs_from_the_module_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"off by .* \(relative L2; limit 0\.0001\)"):
        export(named("counting"), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_the_runtime_lacks_kernels_for_are_refused(tmp_path):
    module = module_of("net").bfloat16()
    with pytest.raises(ModelError, match=r"weights in bfloat16.*module\.float\(\)"):
        export(module, tmp_path / "x.onnx", example_inputs=torch.randn(IMAGE).bfloat16())


def test_half_weights_have_a_limit_of_their_own(tmp_path):
    module = module_of("net").half()
    report = export(module, tmp_path / "x.onnx", example_inputs=torch.randn(IMAGE).half())
    assert 1e-6 < report.traced.relative_l2 < report.traced.limit == 1e-2


def test_weights_alone_are_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"holds weights, no model.*weights_only=True"):
        export(str(tmp_path / "net.pth"), tmp_path / "x.onnx")


def test_a_file_that_is_there_stays(tmp_path):
    (tmp_path / "x.onnx").write_text("mine")
    with pytest.raises(QcompileError, match="--force"):
        export(named("net"), tmp_path / "x.onnx")
    assert (tmp_path / "x.onnx").read_text() == "mine"


def test_an_onnx_file_takes_no_axes(exported, folder, tmp_path):
    with pytest.raises(RecipeError, match="are for torch models"):
        build(folder / "net.onnx", dynamic_axes=["batch"], output=tmp_path / "out")


# -- exported programs -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(folder) -> Path:
    """The conv net as a ``.pt2`` with an open batch."""
    path = folder / "net.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    made = torch.export.export(
        module_of("net"), (torch.randn(2, 1, 8, 8),), dynamic_shapes={"image": {0: batch}}
    )
    torch.export.save(made, path)
    return path


def test_a_program_gives_the_module_s_outputs(program, tmp_path):
    report = export(str(program), tmp_path / "net.onnx", dynamic_axes=["batch"])
    assert shapes(report.traced.inputs) == {"image": ("batch", 1, 8, 8)}
    image = torch.randn(5, 1, 8, 8)
    logits, _ = outputs(tmp_path / "net.onnx", image=image)
    np.testing.assert_allclose(
        logits, module_of("net")(image)["logits"].detach(), rtol=1e-4, atol=1e-6
    )


class Planted:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def rewritten(program: Path, out: Path, change, compression=zipfile.ZIP_STORED) -> Path:
    """Copy an archive; ``change`` gets the name of each record and its bytes."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(out, "w", compression) as made:
        for name in source.namelist():
            made.writestr(name, change(name, source.read(name)))
    return out


def in_graph(old: str, new: str):
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        assert old.encode() in content
        return content.replace(old.encode(), new.encode())

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (in_graph("torch.ops.aten.relu.default", "torch.os.system"), "calls torch.os.system"),
        (in_graph("torch.ops.aten.relu.default", "_operator.call"), "calls _operator.call"),
        (in_graph("torch.ops.aten.relu.default", "torch.ops.aten.from_file"), "aten.from_file"),
    ],
)
def test_a_program_that_calls_what_it_may_not_is_refused(change, told, program, tmp_path):
    path = rewritten(program, tmp_path / "evil.pt2", change)
    with pytest.raises(ModelError, match=f"{told}.*not allowed"):
        read_program(path)


def test_a_size_that_is_code_is_not_evaluated(program, tmp_path):
    found = re.search(r'"expr_str": "(.*?)"', record(program, "models/model.json").decode())[1]
    planted = tmp_path / "planted"
    code = f"__import__('os').mkdir('{planted}')"
    path = rewritten(program, tmp_path / "evil.pt2", in_graph(found, code))
    with pytest.raises(ModelError, match="no arithmetic"):
        read_program(path)
    assert not planted.exists()


def record(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return next(archive.read(n) for n in archive.namelist() if n.endswith(name))


def test_pickled_inputs_are_not_unpickled(program, tmp_path):
    planted = tmp_path / "planted"
    torch.save(((Planted(planted),), {}), tmp_path / "inputs.pt")
    content = (tmp_path / "inputs.pt").read_bytes()
    path = rewritten(
        program, tmp_path / "evil.pt2", lambda n, c: content if "sample_inputs" in n else c
    )
    with pytest.raises(ModelError, match="holds more than tensors"):
        read_program(path)
    assert not planted.exists()


def test_pickled_weights_are_refused(program, tmp_path):
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return content

    path = rewritten(program, tmp_path / "evil.pt2", change)
    with pytest.raises(ModelError, match="is pickled, which is not loaded"):
        read_program(path)


def test_a_compressed_or_cut_archive_is_refused(program, tmp_path):
    path = rewritten(program, tmp_path / "c.pt2", lambda _, c: c, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="no archive that torch"):
        read_program(path)
    path.write_bytes(program.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cut short"):
        read_program(path)
