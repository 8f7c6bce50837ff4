"""Packed weights: bytes back to values, and what ONNX Runtime's MatMulNBits computes with them."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from qcompile.errors import PlanError
from qcompile.numerics.groups import SolvedWeight, WeightFormat, round_nearest
from qcompile.numerics.nbits import PackedWeight, block_size, pack

FORMATS = [
    WeightFormat(bits, size, symmetric)
    for bits in (2, 3, 4, 8)
    for size in (0, 16, 32, 48, 64, 128, 256)
    for symmetric in (True, False)
]


def name(found: WeightFormat) -> str:
    return f"{found.bits}bit-g{found.group_size}-{'sym' if found.symmetric else 'asym'}"


def run(packed: PackedWeight, x: np.ndarray) -> np.ndarray:
    """Multiply in ONNX Runtime by a model with one MatMulNBits node."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    constants = {"B": packed.codes, "scales": packed.scales.astype(x.dtype)}
    if packed.zeros is not None:
        constants["zeros"] = packed.zeros
    rows = len(packed.codes)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *constants],
        ["y"],
        domain="com.microsoft",
        K=packed.columns,
        N=rows,
        bits=packed.bits,
        block_size=packed.block_size,
        accuracy_level=0,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, ["M", packed.columns])],
        [helper.make_tensor_value_info("y", kind, ["M", rows])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def solved(found: WeightFormat, rows: int, columns: int, seed: int = 0) -> SolvedWeight:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, columns)) + rng.uniform(-1, 1, (rows, 1))
    return round_nearest(weights, found)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("found", FORMATS, ids=name)
@pytest.mark.parametrize(("rows", "columns"), [(24, 256), (7, 199), (33, 520), (5, 13)])
def test_onnx_runtime_computes_with_the_stored_values(found, rows, columns):
    weight = solved(found, rows, columns)
    packed = pack(weight)
    assert np.array_equal(packed.values(), weight.stored())
    x = np.random.default_rng(1).standard_normal((3, columns)).astype(np.float32)
    for inputs in (x[:1], x):  # one row takes another kernel than several
        wanted = inputs.astype(np.float64) @ weight.stored().astype(np.float64).T
        assert relative(run(packed, inputs), wanted) <= 1e-5


@pytest.mark.parametrize("found", FORMATS, ids=name)
def test_onnx_runtime_reads_each_weight_exactly(found):
    weight = solved(found, 24, 199)
    assert np.array_equal(run(pack(weight), np.eye(199, dtype=np.float32)), weight.stored().T)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_float16_scales(bits, symmetric):
    weight = solved(WeightFormat(bits, 32, symmetric, "float16"), 24, 200)
    packed = pack(weight)
    assert packed.scales.dtype == np.float16
    assert np.array_equal(packed.values(), weight.stored())
    x = np.random.default_rng(1).standard_normal((3, 200)).astype(np.float32)
    wanted = x @ weight.stored().T
    assert relative(run(packed, x), wanted) <= 1e-5  # scales widened to the inputs' type
    half = run(packed, x.astype(np.float16))
    assert half.dtype == np.float16
    assert relative(half.astype(np.float64), wanted) <= 2e-3


@settings(deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.integers(1, 9),
    st.integers(1, 600),
    st.integers(0, 1000),
    st.sampled_from(["float32", "float16"]),
)
def test_nothing_is_lost(found, rows, columns, seed, scale_type):
    rng = np.random.default_rng(seed)
    used = WeightFormat(found.bits, found.group_size, found.symmetric, scale_type)
    groups = used.groups(columns)
    zeros = rng.integers(0, used.high + 1, (rows, groups), np.uint8)
    if used.symmetric:
        zeros[:] = used.middle
    weight = SolvedWeight(
        used,
        rng.integers(0, used.high + 1, (rows, columns), np.uint8),
        rng.standard_normal((rows, groups)).astype(scale_type),
        zeros,
    )
    packed = pack(weight)
    assert np.array_equal(packed.values(), weight.stored())
    blocks = -(-columns // packed.block_size)
    assert packed.codes.shape == (rows, blocks, packed.block_size * packed.bits // 8)
    assert packed.scales.shape == (rows, blocks)
    assert packed.scales.dtype == scale_type


def test_padding_stands_for_zero():
    packed = pack(solved(WeightFormat(4, 16, symmetric=False), 3, 17))
    whole = PackedWeight(4, 16, 32, packed.codes, packed.scales, packed.zeros).values()
    assert not whole[:, 17:].any()


def test_block_sizes():
    sizes = {g: block_size(WeightFormat(4, g), 4096) for g in (16, 48, 96, 128, 512, 768, 0)}
    assert sizes == {16: 16, 48: 16, 96: 32, 128: 128, 512: 256, 768: 256, 0: 128}
    assert block_size(WeightFormat(4, 0), 20) == 32
    with pytest.raises(PlanError, match="multiple of 16"):
        block_size(WeightFormat(4, 24), 96)
