"""Grids of activations as each kind of target wants them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics.grids import CODE_RANGE, affine_grid
from qcompile.planning.activation_grids import activation_grid
from qcompile.targets.ort_cpu import ORT_CPU
from qcompile.targets.tensorrt import FP8, INT8

UINT8 = ORT_CPU.types("int8", "vnni")
EDGES = st.tuples(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32))


@given(EDGES)
def test_asymmetric_targets_take_the_affine_grid(edges):
    assert activation_grid(*edges, UINT8) == affine_grid(*edges, *CODE_RANGE["uint8"])


@given(EDGES, st.sampled_from([INT8, FP8]), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_symmetric_targets_cover_the_range_with_the_zero_point_0(edges, types, scale_type):
    scale, zero = activation_grid(*edges, replace(types, scale=scale_type))
    assert zero == 0
    high = CODE_RANGE[types.activation][1]
    widest = max(-edges[0], edges[1])
    # rounding a scale may leave out half a step of its type
    assert scale * high >= widest * (1 - 2.0**-8)
    kind = {"float32": np.float32, "float16": np.float16}.get(scale_type)
    if kind is not None and scale <= np.finfo(kind).max:
        assert float(kind(scale)) == scale


@pytest.mark.parametrize("types", [UINT8, INT8, FP8])
def test_an_empty_range_gives_a_usable_grid(types):
    scale, _ = activation_grid(0.0, 0.0, types)
    assert scale == 1.0


def test_a_scale_beyond_half_stays_in_float32():
    halved = replace(INT8, scale="float16")
    scale, _ = activation_grid(-1e8, 1e8, halved)
    assert scale == np.float32(1e8 / 127)
