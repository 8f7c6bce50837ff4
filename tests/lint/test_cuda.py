"""The rules of ONNX Runtime's GPU providers: for each a model that breaks it and one that does not.

What they say of the CPU is asked of ONNX Runtime itself.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from qcompile.errors import EngineError
from qcompile.lint.cuda import BESIDE_TENSORRT, RULES, Provider, check_cuda
from qcompile.lint.operators import ABSENT, INTEGER
from qcompile.lint.rule import Finding, Setting, Severity
from qcompile.progress import Silent
from qcompile.runtime.ort import Session
from qcompile.targets.cuda_kernels import CONTRIB, KERNELS, LATE
from tests.lint import test_ports
from tests.lint.models import (
    BF16,
    FLOAT,
    HALF,
    INT8,
    INT32,
    UINT8,
    Net,
    codes,
    conv,
    matmul,
    scalar,
    zeros,
)


def unary(op: str, dtype: ir.DataType = FLOAT, opset: int = 20, **attributes: Any) -> ir.Model:
    net = Net(opset)
    return net.model(net.op(op, net.input((1, 4, 8, 8), dtype), **attributes))


def sampled(dtype: ir.DataType) -> ir.Model:
    net = Net()
    grid = net.input((1, 8, 8, 2), dtype)
    return net.model(net.op("GridSample", net.input((1, 4, 8, 8), dtype), grid))


def aligned(dtype: ir.DataType) -> ir.Model:
    net = Net()
    x, rois = net.input((1, 4, 8, 8), dtype), net.input((1, 4), dtype)
    return net.model(net.op("RoiAlign", x, rois, np.zeros(1, np.int64)))


def integer(op: str) -> ir.Model:
    net = Net()
    a, b = net.input((1, 4, 8, 8), UINT8), net.input((4, 4, 3, 3), UINT8)
    return net.model(net.op(op, a, b))


def product(kind: ir.DataType) -> ir.Model:
    net = Net()
    return net.model(net.op("MatMulInteger", net.input((4, 8), kind), codes(8, 4)))


def nbits(
    bits: int = 4,
    group: int = 32,
    rows: int = 64,
    columns: int = 32,
    level: int = 0,
    order: bool = False,
) -> ir.Model:
    """MatMulNBits, as ONNX Runtime's schema has it."""
    net = Net()
    blocks = -(-rows // group)
    packed = np.zeros((columns, blocks, group * bits // 8), np.uint8)
    inputs = [net.input((2, rows)), packed, np.ones(columns * blocks, np.float32)]
    if order:
        inputs += [None, np.arange(rows, dtype=np.int32) // group]
    about = {"K": rows, "N": columns, "bits": bits, "block_size": group, "accuracy_level": level}
    y = net.op("MatMulNBits", *inputs, domain=CONTRIB, **about)
    y.type, y.shape = ir.TensorType(FLOAT), ir.Shape((2, columns))
    return net.model(y)


def float_weight() -> ir.Model:
    net = Net()
    return net.model(net.op("MatMul", net.input((4, 64)), np.ones((64, 8), np.float32)))


def int8_weight_of_conv() -> ir.Model:
    net = Net()
    w = net.weight(codes(16, 16, 3, 3), axis=0)
    return net.model(net.op("Conv", net.input((1, 16, 8, 8)), w))


def rounded(zero: np.ndarray, scale: np.ndarray | None = None) -> ir.Model:
    net = Net()
    kind = FLOAT if scale is None else ir.DataType.from_numpy(scale.dtype)
    return net.model(net.qdq(net.input((4, 8), kind), scale, zero))


def folded(op: str) -> ir.Model:
    """A node of constants, which ONNX Runtime computes when it loads."""
    net = Net()
    constant = net.op(op, np.ones(8, np.float32))
    return net.model(net.op("Add", net.input((8,)), constant))


CASES: dict[str, tuple[list[Callable[[], ir.Model]], list[Callable[[], ir.Model]]]] = {
    "C01": (
        [partial(unary, "Tan"), partial(integer, "ConvInteger")],
        [partial(unary, "Sin"), partial(folded, "Tan")],
    ),
    "C02": (
        [partial(sampled, HALF), partial(aligned, HALF)],
        [partial(sampled, FLOAT), partial(unary, "Sin", HALF)],
    ),
    "C03": (
        [partial(unary, op, BF16, 22) for op in ("GlobalMaxPool", "LeakyRelu", "Tan")],
        [
            partial(unary, "Relu", BF16),
            partial(unary, "Clip", BF16),
            partial(unary, "MaxPool", HALF, kernel_shape=[1, 1]),
        ],
    ),
    "C04": ([conv, partial(matmul, activation={}), int8_weight_of_conv], [float_weight, matmul]),
    "C05": (
        [partial(rounded, zeros(dtype=np.int16)), partial(rounded, zeros(dtype=np.uint16))],
        [partial(rounded, zeros()), partial(rounded, zeros(dtype=np.uint8))],
    ),
    "C06": (
        [partial(rounded, zeros(), scalar(0.5, "bfloat16"))],
        [partial(rounded, zeros(), scalar(0.5, "float16"))],
    ),
    "C07": ([partial(product, UINT8)], [partial(product, INT8)]),
    "C08": ([partial(nbits, bits=2)], [nbits, partial(nbits, bits=8)]),
    "C09": ([partial(nbits, level=4)], [nbits]),
    "C10": (
        [partial(nbits, group=256), partial(nbits, columns=30), partial(nbits, order=True)],
        [nbits, partial(nbits, group=16), partial(nbits, group=128)],
    ),
    "C11": (
        [partial(unary, "Flatten", opset=21), partial(unary, "GlobalAveragePool", opset=22)],
        [partial(unary, "Flatten", opset=20), partial(unary, "GlobalAveragePool", opset=21)],
    ),
}


def found(
    model: ir.Model, provider: Provider = "cuda", setting: Setting | None = None
) -> list[Finding]:
    return check_cuda(model, provider, setting or Setting(), Silent())


def test_every_rule_has_cases() -> None:
    assert [rule.name for rule in RULES] == sorted(CASES)
    assert not {rule.name for rule in BESIDE_TENSORRT} & CASES.keys()


@pytest.mark.parametrize("rule", CASES)
def test_broken_and_kept(rule: str) -> None:
    breaking, keeping = CASES[rule]
    severity = next(each.severity for each in RULES if each.name == rule)
    for make in breaking:
        places = [finding for finding in found(make()) if finding.rule == rule]
        assert places, make
        assert {place.severity for place in places} == {severity}
        names = {node.name for node in make().graph}
        assert all(place.where in names and "\n" not in place.what for place in places)
    for make in keeping:
        assert rule not in {finding.rule for finding in found(make())}, make


# -- what the CPU does, asked of ONNX Runtime ----------------------------------------------------


def loads(model: ir.Model, tmp_path: Path) -> bool:
    ir.save(model, tmp_path / "model.onnx")
    try:
        Session(tmp_path / "model.onnx", optimize=False)
    except EngineError:
        return False
    return True


@pytest.mark.parametrize("make", CASES["C03"][0] + CASES["C06"][0])
def test_what_no_provider_has_does_not_load(make: Callable[[], ir.Model], tmp_path: Path) -> None:
    assert not loads(make(), tmp_path)


def test_float16_without_a_kernel_runs_between_casts(tmp_path: Path) -> None:
    assert loads(sampled(HALF), tmp_path)
    assert loads(aligned(HALF), tmp_path)
    assert loads(unary("Clip", BF16), tmp_path)


@pytest.mark.parametrize(
    "make", [make for rule in ("C01", "C05", "C07") for make in CASES[rule][0]]
)
def test_what_falls_to_the_cpu_runs_there(make: Callable[[], ir.Model], tmp_path: Path) -> None:
    assert loads(make(), tmp_path)


# -- tables ---------------------------------------------------------------------------------------


def test_names_in_the_tables_are_operators() -> None:
    import onnx.defs

    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    own = {"Scatter", "SimplifiedLayerNormalization", "Upsample"}  # retired, or ONNX Runtime's
    assert {op for domain, op in KERNELS if not domain} - known <= own
    for op, version in LATE.items():
        assert onnx.defs.get_schema(op, version, "").since_version == version


def test_operators_without_kernels_are_in_no_table() -> None:
    ours = {op for _, op in KERNELS}
    assert INTEGER & ours <= {"MatMulInteger", "QAttention", "QOrderedMatMul"}
    assert {"TfIdfVectorizer", "StringNormalizer", "DFT", "Unique"} <= ABSENT - ours


# -- TensorRT's provider --------------------------------------------------------------------------


def test_what_tensorrt_refuses_is_left_to_cuda_and_no_error() -> None:
    model = matmul(activation={"zero": scalar(3, "int8")})
    refused = found(model, "tensorrt")
    assert {(f.rule, f.severity) for f in refused} == {("L03", Severity.FLOAT)}
    assert all(f.what.endswith("which cuts the graph in pieces") for f in refused)


def test_missing_shapes_are_no_error_there() -> None:
    (only,) = found(test_ports.dynamic(), "tensorrt")
    assert (only.rule, only.severity) == ("L39", Severity.WARNING)


def test_int8_is_right_for_tensorrt_and_lost_on_cuda() -> None:
    assert found(conv(), "tensorrt") == []
    assert {f.rule for f in found(conv())} == {"C04"}


def test_few_bits_are_cuda_s_behind_tensorrt() -> None:
    assert "C12" in {f.rule for f in found(nbits(), "tensorrt")}
    assert found(nbits()) == []


def test_int32_codes_are_named() -> None:
    net = Net()
    y = net.op("DequantizeLinear", net.input((4,), INT32), scalar(0.5), zeros(dtype=np.int32))
    (only,) = found(net.model(y))
    assert only.what == "DequantizeLinear of int32 has no CUDA kernel: it runs on the CPU"
