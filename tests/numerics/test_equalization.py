"""Cross-layer equalization: the equations of the paper, and what must not change."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcompile.numerics.equalization import DEAD, LayerRanges, Pair, equalization, pair_scale

seeds = st.integers(0, 9999)


def spread(seed, *shape, width=1.0):
    return np.exp(width * np.random.default_rng(seed).standard_normal(shape))


def layer(magnitudes, groups=1, biases=None):
    quiet = np.zeros(len(magnitudes)) if biases is None else biases
    return LayerRanges(magnitudes, quiet, groups)


@given(seeds, st.integers(1, 40))
def test_both_ranges_become_their_geometric_mean_up_to_a_factor(seed, channels):
    first, second = spread(seed, channels), spread(seed + 1, channels)
    scale = pair_scale(first, second)
    equation = np.sqrt(first * second) / second
    np.testing.assert_allclose(scale / scale[0], equation / equation[0])
    np.testing.assert_allclose(np.log(scale).mean(), 0, atol=1e-9)
    balanced = (first / scale) / (second * scale)
    np.testing.assert_allclose(balanced, balanced[0])


def test_dead_channels_are_left():
    first = np.array([1.0, 0.0, 4.0, 1.0, DEAD / 2])
    second = np.array([4.0, 1.0, 0.0, 1.0, 1.0])
    wanted = [0.5**0.5, 1, 1, 2**0.5, 1]
    np.testing.assert_allclose(pair_scale(first, second), wanted)
    np.testing.assert_array_equal(pair_scale(np.zeros(2), np.ones(2)), [1, 1])


def test_a_bias_counts_as_range():
    """A nearly constant channel is not blown up: the pair is balanced as if its weights were."""
    weights = np.array([[1.0], [1e-4], [1.0]])
    quiet, loud = layer(weights), layer(weights, biases=np.array([0.1, 1.0, 0.1]))
    behind = layer(np.ones((2, 3)))
    (blown,), (kept,) = (equalization([one, behind], [Pair(0, (1,))]) for one in (quiet, loud))
    assert blown[1] < 0.1
    np.testing.assert_allclose(kept, 1.0)
    assert loud.divided(np.array([1.0, 2.0, 1.0])).outputs()[1] == 0.5


@given(seeds, st.sampled_from([(1, 6, 8), (2, 6, 8), (8, 8, 8), (4, 12, 8)]))
def test_ranges_are_those_of_the_scaled_weight(seed, sizes):
    groups, outputs, inputs = sizes
    weight = np.random.default_rng(seed).standard_normal((outputs, inputs // groups, 3, 3))
    ranges = layer(np.abs(weight).max(axis=(2, 3)), groups)
    by, times = spread(seed, outputs), spread(seed + 1, inputs)
    dense = np.zeros((outputs, inputs))
    width, share = inputs // groups, outputs // groups
    for row in range(outputs):
        start = row // share * width
        dense[row, start : start + width] = np.abs(weight[row]).max(axis=(1, 2))
    scaled = dense / by[:, None] * times
    found = ranges.divided(by).multiplied(times)
    np.testing.assert_allclose(found.outputs(), scaled.max(axis=1))
    np.testing.assert_allclose(found.inputs(), scaled.max(axis=0))


@given(seeds)
def test_a_chain_converges_to_equal_ranges_of_all_pairs(seed):
    """Dense, depthwise and dense again, as in a separable convolution; then two readers."""
    layers = [
        layer(spread(seed, 8, 3)),
        layer(spread(seed + 1, 8, 1, width=2), groups=8),
        layer(spread(seed + 2, 5, 8)),
        layer(spread(seed + 3, 6, 5)),
        layer(spread(seed + 4, 7, 5)),
    ]
    pairs = [Pair(0, (1,)), Pair(1, (2,)), Pair(2, (3, 4))]
    scales = equalization(layers, pairs)
    for pair, scale in zip(pairs, scales, strict=True):
        layers[pair.first] = layers[pair.first].divided(scale)
        for reader in pair.readers:
            layers[reader] = layers[reader].multiplied(scale)
    for pair in pairs:
        behind = np.max([layers[reader].inputs() for reader in pair.readers], axis=0)
        ratio = layers[pair.first].outputs() / behind
        np.testing.assert_allclose(ratio, ratio[0], rtol=0.01)


@given(seeds)
def test_the_smallest_share_of_the_range_grows(seed):
    """Equation 9: the product of both layers' precisions, summed over channels, is at its most."""
    first, second = layer(spread(seed, 9, 4)), layer(spread(seed + 1, 6, 9))
    (scale,) = equalization([first, second], [Pair(0, (1,))])

    def precision(by):
        one, two = first.divided(by).outputs(), second.multiplied(by).inputs()
        return (one / one.max() * two / two.max()).sum()

    best = precision(scale)
    rng = np.random.default_rng(seed)
    for other in (np.ones(9), *np.exp(rng.standard_normal((20, 9)))):
        assert precision(other) <= best * (1 + 1e-9)
