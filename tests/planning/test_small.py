"""What is too small for codes to pay: each limit from both sides."""

import numpy as np
import pytest

from qcompile.planning.small import small_kind
from qcompile.targets.tensorrt import TENSORRT, TENSORRT_RTX
from tests.planning.tools import graph_of

FIRST = "float[1, {c}, 8, 8] x", "y = Conv <group={g}> (x, w)"
LATER = "float[1, {c}, 8, 8] i", "x = Sigmoid(i)\ny = Conv <group={g}> (x, w)"


def convolution(outputs: int, inputs: int, *window: int, groups: int = 1, first: bool = False):
    port, body = FIRST if first else LATER
    weight = np.ones((outputs, inputs, *window), np.float32)
    port = port.format(c=inputs * groups)
    if len(window) == 1:
        port = port.replace(", 8, 8", ", 8")
    model = graph_of(port, body.format(g=groups), w=weight)
    return next(node for node in model.graph if node.op_type == "Conv")


def product(data: str, rows: int, columns: int, op: str = "MatMul"):
    model = graph_of(f"float[{data}] x", f"y = {op}(x, w)", w=np.ones((rows, columns), np.float32))
    return next(iter(model.graph))


@pytest.mark.parametrize(
    ("shape", "first", "kind"),
    [
        ((16, 16, 3, 3), False, ""),
        ((16, 15, 3, 3), False, "channels"),
        ((15, 16, 3, 3), False, "channels"),
        ((16, 3, 3, 3), True, ""),
        ((16, 3, 3, 3), False, "channels"),
        ((16, 3, 3, 1), True, "channels"),
        ((12, 3, 3, 3), True, "channels"),
        ((64, 4, 3, 3), False, ""),
        ((56, 4, 3, 3), False, "channels"),
        ((16, 16, 5), False, ""),
        ((16, 8, 5), False, "channels"),
    ],
)
def test_dense_convolutions_in_int8(shape, first, kind):
    assert small_kind(convolution(*shape, first=first), "int8") == kind


@pytest.mark.parametrize(
    ("shape", "groups", "kind"),
    [
        ((16, 1, 3, 3), 16, ""),
        ((12, 1, 3, 3), 12, "groups"),
        ((16, 1, 3, 1), 16, "groups"),
        ((16, 4, 1, 1), 4, "groups"),
        ((16, 4, 3, 3), 4, ""),
    ],
)
def test_grouped_convolutions_in_int8(shape, groups, kind):
    assert small_kind(convolution(*shape, groups=groups), "int8") == kind


@pytest.mark.parametrize(
    ("shape", "groups", "kind"),
    [
        ((17, 17, 5, 5), 1, ""),
        ((16, 17, 3, 3), 1, "fp8 convolution"),
        ((17, 16, 3, 3), 1, "fp8 convolution"),
        ((32, 32, 6, 6), 1, "fp8 convolution"),
        ((32, 1, 3, 3), 32, "fp8 convolution"),
    ],
)
def test_convolutions_in_fp8(shape, groups, kind):
    assert small_kind(convolution(*shape, groups=groups), "fp8") == kind


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("data", "rows", "columns", "kind"),
    [
        ("7, 16", 16, 16, ""),
        ("7, 15", 15, 16, "columns"),
        ("7, 16", 16, 15, "columns"),
        ("1, 16", 16, 16, "row"),
        ("1, 1, 16", 16, 16, "row"),
        ("1, 7, 16", 16, 16, ""),
        ("N, 16", 16, 16, ""),
        ("16", 16, 16, "row"),
    ],
)
def test_products(data, rows, columns, kind, scheme):
    assert small_kind(product(data, rows, columns), scheme) == kind


def test_gemm_reads_rows_too():
    assert small_kind(product("1, 32", 32, 32, "Gemm"), "int8") == "row"
    assert small_kind(product("2, 32", 32, 32, "Gemm"), "int8") == ""


@pytest.mark.parametrize("target", [TENSORRT, TENSORRT_RTX], ids=lambda target: target.name)
def test_targets_say_why(target):
    assert set(target.small) == {"channels", "groups", "fp8 convolution", "columns", "row"}
