"""Sums of features: right, and the same bits whoever made which part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.errors import UserError
from sid_ray.metrics.sums import BLOCK, FeatureSums, blocks_of, merged, to_fixed, to_float


def features(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Of unlike scales and offsets, as a network's are."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-3, 1, width)
    return ((rng.normal(size=(count, width)) + rng.normal(size=width)) * scale).astype(np.float32)


def shared_out(x: np.ndarray, actors: int, order: np.ndarray) -> FeatureSums:
    """Blocks dealt to actors in any order; each merges its own, then all are merged."""
    blocks = list(blocks_of(len(x)))
    shares = [[blocks[i] for i in order[actor::actors]] for actor in range(actors)]
    sums = [
        merged(FeatureSums.of_block(x[part], block) for block, part in share)
        for share in shares
        if share
    ]
    return merged(reversed(sums))


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 9 * BLOCK), actors=st.sampled_from([1, 2, 5]), seed=st.integers(0, 99))
def test_any_number_of_actors_gives_the_same_bits(count, actors, seed):
    x = features(count, 7, seed)
    once = FeatureSums.of(x)
    order = np.random.default_rng(seed).permutation(len(list(blocks_of(count))))
    found = shared_out(x, actors, order)
    assert found.count == count and found.blocks == once.blocks
    assert found.mean.tobytes() == once.mean.tobytes()
    assert found.covariance.tobytes() == once.covariance.tobytes()


def test_equals_numpy():
    x = features(1000, 12)
    sums = FeatureSums.of(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(sums.mean, wide.mean(0), rtol=1e-13)
    expected = np.cov(wide.T)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(sums.covariance / scale, expected / scale, atol=1e-12)
    assert (sums.covariance == sums.covariance.T).all()


@given(st.lists(st.floats(-(2.0**30), 2.0**30), min_size=1))
def test_fixed_point_rounds_once(values):
    given_values = np.array(values)
    found = to_float(to_fixed(given_values))
    assert (np.abs(found - given_values) <= 2.0**-57).all()


def test_what_cannot_be_summed_is_refused():
    x = features(2 * BLOCK, 3)
    with pytest.raises(UserError, match=r"block 1 .* counted twice"):
        FeatureSums.of(x) + FeatureSums.of_block(x[BLOCK:], 1)
    with pytest.raises(UserError, match="features of 3 and 2 numbers"):
        FeatureSums.of_block(x[:BLOCK], 0) + FeatureSums.of_block(x[:BLOCK, :2], 1)
    with pytest.raises(UserError, match=r"expected \[1 to 256, features\]"):
        FeatureSums.of_block(x, 0)
    with pytest.raises(UserError, match="reach 1e"):
        FeatureSums.of_block(np.full((2, 2), 1e6), 0)
    with pytest.raises(UserError, match="at least 2 samples"):
        _ = FeatureSums.of(x[:1]).covariance
    x[BLOCK + 5, 1] = np.nan
    with pytest.raises(UserError, match=r"1 of 256 samples of block 1 .* not finite"):
        FeatureSums.of(x)
