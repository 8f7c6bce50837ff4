"""Kernels as TensorRT for RTX 1.7.1 makes them; test_rtx.py checks the same on real builds."""

import onnx.parser
import onnx_ir as ir
import pytest

from qcompile.runtime.layer_dump import EngineLayer, EngineTensor
from qcompile.runtime.obtained import NOT_FOUND, Obtained, obtained

MODEL = ir.from_proto(
    onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "my.domain" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) {
            [mm] a = MatMul(x, w)
            [add] b = Add(a, x)
            c = MatMul(b, w)
            [pool] d = MaxPool<kernel_shape = [1]>(c)
            [relu] e = Relu(d)
            [other] f = my.domain.MatMul(e, w)
            [choice] y = If(k) <
                then_branch = t () => (float[N, 4] u) { [inner] u = MatMul(f, w) },
                else_branch = s () => (float[N, 4] v) { [outer] v = MatMul(f, w) }
            >
        }"""
    )
)


def layer(kind, nodes, inputs, constants=(), outputs=("fp32",), name="l"):
    lists = ([EngineTensor("t", dtype, (4, 4)) for dtype in some] for some in (inputs, constants))
    outs = tuple(EngineTensor("t", dtype, (4, 4)) for dtype in outputs)
    return EngineLayer(name, kind, nodes, *map(tuple, lists), outs)


def precision(*layers, node="mm"):
    return obtained(MODEL, layers)[node].precision


@pytest.mark.parametrize(
    ("inputs", "constants", "outputs", "expected"),
    [
        (["int8"], ["int8", "fp32", "fp32"], ["fp32"], "int8"),
        (["int8", "int8"], ["fp32"], ["fp16"], "int8"),
        (["fp8"], ["fp8"], ["fp16"], "fp8"),
        (["fp16"], ["fp16", "fp32"], ["fp16"], "fp16"),
        (["bf16", "bf16"], [], ["bf16"], "bf16"),
        (["fp32", "fp32"], ["fp32"], ["fp32"], "fp32"),
    ],
)
def test_gemm(inputs, constants, outputs, expected):
    assert precision(layer("gemm", ("mm",), inputs, constants, outputs)) == expected


@pytest.mark.parametrize(
    ("name", "inputs", "constants", "expected"),
    [
        ("__myl_CastMulCastCastMulFc_myl0_1", ["int8"], ["fp32", "int8"], "fp16"),
        ("__myl_FcMulAddMulMinMaxRounCast_myl0_1", ["int8"], ["int8", "fp32"], "int8"),
        ("__myl_CastMulCastCastMulCorrMulAdd_myl0_1", ["int8"], ["int8", "fp16"], "fp16"),
        ("__myl_CorrMulAddReluCast_myl0_1", ["int8"], ["fp16", "int8"], "int8"),
        ("__myl_ReplCastMulCastFc_myl0_0", ["fp16"], ["int4", "fp16"], "int4 weights"),
        ("__myl_CastMulCastFc_myl0_0", ["fp16"], ["fp16", "int8"], "int8 weights"),
        ("__myl_FcAdd_myl0_0", ["fp16", "int8"], ["fp16"], "fp16"),
    ],
)
def test_fused_gemm(name, inputs, constants, expected):
    fused = layer("runtime_fusion", ("mm",), inputs, constants, ["fp16"], name)
    assert precision(fused) == expected


def test_fused_attention():
    fused = layer("kgen", ("mm", "inner"), ["fp8"] * 3, [], ["fp16"], "_gemm_mha_v2_myl0_3")
    assert precision(fused) == precision(fused, node="inner") == "fp8"


def test_the_kernel_that_multiplies_counts_not_the_one_that_scales_its_result():
    multiplies = layer("gemm", ("mm", "x_DQ"), ["int8"], ["int8"])
    scales = layer("kgen", ("mm", "x_DQ", "add"), ["fp32"], ["fp32"])
    found = obtained(MODEL, [scales, multiplies])
    assert found["mm"] == Obtained("MatMul", "int8", "l")
    assert found["add"].precision == "fp32"


def test_of_several_kernels_the_float_one_counts():
    layers = [layer("gemm", ("mm",), ["int8"], ["int8"]), layer("gemm", ("mm",), ["fp16"])]
    assert precision(*layers) == precision(*reversed(layers)) == "fp16"


def test_pool_and_kernels_that_move_codes():
    pool = layer("maxpool", ("pool",), ["int8"], ["fp32"], ["int8"])
    assert precision(pool, node="pool") == "int8"
    assert precision(layer("kgen", ("pool",), ["int8"], [], ["int8"]), node="pool") == "int8"
    math = layer("kgen", ("add",), ["int8", "fp16"], ["fp16"], ["int8"])
    assert precision(math, node="add") == "fp16"


def test_names():
    layers = [
        layer("gemm", ("node_of_c",), ["int8"], ["int8"]),
        layer("gemm", ("inner | u (then_branch) | choice (If)",), ["fp16"]),
        layer("cjmp", ("outer",), ["fp32"]),
    ]
    found = obtained(MODEL, layers)
    assert {name: one.precision for name, one in found.items()} == {
        "mm": NOT_FOUND,
        "add": NOT_FOUND,
        "node_of_c": "int8",
        "pool": NOT_FOUND,
        "inner": "fp16",
        "outer": NOT_FOUND,
    }
    assert list(obtained(MODEL, layers, ["Relu"])) == ["relu"]


def test_a_layer_without_tensors():
    assert precision(layer("mystery", ("mm",), [], [], [])) == NOT_FOUND
