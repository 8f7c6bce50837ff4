"""Golden graphs: three small nets as each target's engine holds them, after all of its passes.

The nets are built as a user would; ``--update-golden`` rewrites the files.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import qcompile
from qcompile.graph.dump import dump
from qcompile.recipe import Recipe
from tests.passes.golden import GOLDEN
from tests.planning.tools import feeds_of, graph_of, normal

PADS = "<pads=[1, 1, 1, 1]>"
WEIGHTS = {
    "w": normal(1, 16, 16, 3, 3, scale=0.1),
    "v": normal(2, 16, 16, 3, 3, scale=0.1),
    "p": normal(3, 16, 16, 1, 1, scale=0.3),
    "wide": normal(4, 16, 32, 1, 1, scale=0.2),
    "b": normal(5, 16),
    "head": normal(6, 16, 16),
    "c": normal(7, 16),
    **{name: normal(i, 64, 64, scale=0.1) for i, name in enumerate("qkmo", 8)},
    "up": normal(12, 64, 128, scale=0.1),
    "down": normal(13, 128, 64, scale=0.1),
    "gain": np.ones(64, np.float32),
    "bias": normal(14, 64),
    "eighth": np.asarray(0.125, np.float32),
}
NETS = {
    "residual": (
        "float[1, 16, 8, 8] x",
        f"""[conv1] a = Conv {PADS} (x, w, b)
            [relu1] r = Relu(a)
            [conv2] d = Conv {PADS} (r, v, b)
            [sum] s = Add(d, x)
            [relu2] t = Relu(s)
            [mean] g = GlobalAveragePool(t)
            [flat] f = Flatten(g)
            [head] y = Gemm(f, head, c)""",
    ),
    "transformer": (
        "float[1, 8, 64] x",
        """[norm1] n = LayerNormalization(x, gain, bias)
            [query] q1 = MatMul(n, q)
            [key] k1 = MatMul(n, k)
            [value] m1 = MatMul(n, m)
            [turn] k2 = Transpose <perm=[0, 2, 1]> (k1)
            [scores] s1 = MatMul(q1, k2)
            [scaled] s2 = Mul(s1, eighth)
            [weights] s3 = Softmax(s2)
            [mix] s4 = MatMul(s3, m1)
            [project] s5 = MatMul(s4, o)
            [add1] h = Add(x, s5)
            [norm2] n2 = LayerNormalization(h, gain, bias)
            [up] u = MatMul(n2, up)
            [gelu] e = Gelu(u)
            [down] d = MatMul(e, down)
            [add2] y = Add(h, d)""",
    ),
    "concat": (
        "float[1, 16, 8, 8] x",
        f"""[squeeze] s = Conv(x, p, b)
            [relu0] r0 = Relu(s)
            [left] l = Conv(r0, p, b)
            [relu1] r1 = Relu(l)
            [right] r = Conv {PADS} (r1, w, b)
            [relu2] r2 = Relu(r)
            [join] j = Concat <axis=1> (r1, r2)
            [last] z = Conv(j, wide)
            [pool] y = MaxPool <kernel_shape=[2, 2], strides=[2, 2]> (z)""",
    ),
}
RECIPES = {
    "ort-cpu-int8": {"target": "ort-cpu", "cpu": "vnni"},
    "tensorrt-int8": {"target": "tensorrt", "sm": (87,)},
    "tensorrt-fp8": {"target": "tensorrt", "sm": (89,), "scheme": "fp8"},
    "tensorrt-int4": {
        "target": "tensorrt",
        "sm": (87,),
        "scheme": "weight-only",
        "weights": {"algorithm": "rtn", "group_size": 64, "search": False},
    },
    "tensorrt-fp16": {"target": "tensorrt", "sm": (87,), "scheme": "fp16"},
    "tensorrt-bf16": {"target": "tensorrt", "sm": (87,), "scheme": "bf16"},
    "ort-cuda-fp16": {"target": "ort-cuda", "scheme": "fp16"},
    "ort-mobile-xnnpack": {"target": "ort-mobile", "ep": "xnnpack"},
}
TIMED = ("ort-cpu-int8", "ort-mobile-xnnpack")
"""These builds run the engine, or convert it in a process of their own: seconds each."""

PAIRS = [
    (net, target)
    for target in RECIPES
    for net in NETS
    if target != "tensorrt-int4" or net == "transformer"
]

CASES = [
    pytest.param(
        net,
        target,
        id=f"{net}-{target}",
        marks=[pytest.mark.slow] if target in TIMED else [],
    )
    for net, target in PAIRS
]


def built(net: str, target: str, folder: Path) -> ir.Model:
    """Build a net with the command's function; return the graph of its engine."""
    inputs, body = NETS[net]
    words = set(body.replace(",", " ").replace("(", " ").replace(")", " ").split())
    model = graph_of(inputs, body, **{n: array for n, array in WEIGHTS.items() if n in words})
    ir.save(model, folder / "net.onnx")
    for name, count in (("calib", 3), ("eval", 1)):
        (folder / name).mkdir()
        for number, feeds in enumerate(feeds_of(model, count, seed=len(name))):
            np.savez(folder / name / f"{number}.npz", **feeds)
    about = {"keep_accuracy": False, "calibration": {"method": "minmax"}, "jobs": 1}
    recipe = Recipe.model_validate({**about, **RECIPES[target], "gates": {"allow_slower": True}})
    report = qcompile.build(
        folder / "net.onnx",
        calib=folder / "calib",
        evaluation=folder / "eval",
        output=folder / "out",
        recipe=recipe,
    )
    return ir.load(Path(report.output) / "model.onnx")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("net", "target"), CASES)
def test_golden(net: str, target: str, tmp_path: Path, update_golden: bool) -> None:
    text = dump(built(net, target, tmp_path))
    path = GOLDEN / "targets" / net / f"{target}.txt"
    if update_golden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


def test_every_golden_graph_is_made() -> None:
    found = {path.relative_to(GOLDEN / "targets") for path in (GOLDEN / "targets").rglob("*.txt")}
    assert found == {Path(net, f"{target}.txt") for net, target in PAIRS}
