"""Metrics that compare samples: known cases, and the same bits for any number of actors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.errors import UserError
from sid_ray.metrics.blocks import FeatureBlocks, together
from sid_ray.metrics.inception_score import inception_score, shuffled_order
from sid_ray.metrics.kid import choose_subsets, kernel_distance, squared_discrepancy
from sid_ray.metrics.precision_recall import precision_recall, squared_radii
from sid_ray.metrics.sums import BLOCK, blocks_of


def dealt(x: np.ndarray, actors: int) -> np.ndarray:
    shares = [list(blocks_of(len(x)))[actor::actors] for actor in range(actors)]
    made = [together(FeatureBlocks.of_block(x[at], i) for i, at in share) for share in shares]
    return together(reversed(made)).array()


@pytest.mark.parametrize("actors", [1, 2, 5])
def test_any_number_of_actors_gives_the_same_bits(actors):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5 * BLOCK + 17, 8)).astype(np.float32)
    real = rng.normal(size=(600, 8)).astype(np.float32) + 0.2

    def everything(made: np.ndarray) -> list[float]:
        subsets = choose_subsets(len(made), len(real), 3, 100)
        return [
            *kernel_distance(made, real, subsets),
            *inception_score(made, shuffled_order(len(made))),
            *precision_recall(made, real),
        ]

    assert dealt(x, actors).tobytes() == x.tobytes()
    assert everything(dealt(x, actors)) == everything(x)


def test_blocks_that_do_not_fit_are_refused():
    x = np.zeros((2 * BLOCK + 1, 2), np.float32)
    blocks = FeatureBlocks.of(x)
    with pytest.raises(UserError, match=r"block 2 .* made twice"):
        blocks + FeatureBlocks.of_block(x[:1], 2)
    with pytest.raises(UserError, match=r"block 0 .* is missing among 1"):
        FeatureBlocks.of_block(x[:1], 1).array()
    with pytest.raises(UserError, match=r"block 0 .* is missing among 0"):
        FeatureBlocks().array()
    with pytest.raises(UserError, match="block 0 has 3 samples"):
        (FeatureBlocks.of_block(x[:3], 0) + FeatureBlocks.of_block(x[:3], 1)).array()
    with pytest.raises(UserError, match="not finite"):
        FeatureBlocks.of_block(x[:3] + np.inf, 0)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    """Unbiased: the mean over many independent pairs is within its own error of zero."""
    rng = np.random.default_rng(1)
    found = [squared_discrepancy(*rng.normal(size=(2, 50, 4))) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 400**0.5
    assert min(found) < 0


def test_kernel_distance_of_a_few_numbers():
    """One feature, so gamma is 1: every pair by hand, without the pairs of a sample with itself."""
    x, y = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0]])

    within_x = (1 + 1 + 27) / 3  # 0 * 1, 0 * 2 and 1 * 2, plus 1, cubed
    within_y = 4**3
    across = (1 + 1 + 8 + 64 + 27 + 343) / 6
    expected = within_x + within_y - 2 * across
    assert squared_discrepancy(x, y) == pytest.approx(expected, rel=1e-12)


def test_subsets_are_a_function_of_the_seed():
    first, again, other = (list(choose_subsets(40, 50, 4, 30, seed)) for seed in (3, 3, 4))
    for (i, j), (k, m) in zip(first, again, strict=True):
        assert (i == k).all() and (j == m).all()
        assert len(set(i)) == len(set(j)) == 30 and i.max() < 40 and j.max() < 50
    assert any((i != k).any() for (i, _), (k, _) in zip(first, other, strict=True))
    # the first subsets of many are the subsets of few
    more = list(choose_subsets(40, 50, 9, 30, 3))
    assert all((a[0] == b[0]).all() for a, b in zip(first, more[:4], strict=True))
    with pytest.raises(UserError, match=r"subsets of 30 .* only 20 samples"):
        list(choose_subsets(20, 50, 4, 30))


def test_inception_score_of_known_classifiers():
    sure = np.full((100, 5), -1e4)
    sure[np.arange(100), np.arange(100) % 5] = 0
    assert inception_score(sure) == pytest.approx((5, 0))
    assert inception_score(np.zeros((100, 5))) == pytest.approx((1, 0))
    assert inception_score(sure[::5]) == pytest.approx((1, 0))  # one class only
    with pytest.raises(UserError, match=r"10 splits .* only 9 samples"):
        inception_score(np.zeros((9, 5)))


def test_precision_and_recall_of_known_sets():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 4))
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real + 100, real) == (0, 0)
    assert precision_recall(np.repeat(real[:1], 50, 0), real).precision == 1
    few = precision_recall(real[:30] * 0.1, real)
    assert few.precision == 1 and few.recall < 0.2
    with pytest.raises(UserError, match="3 made and 300 real samples"):
        precision_recall(real[:3], real)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(4, 40), tile=st.integers(1, 50), neighbours=st.integers(1, 3))
def test_tiles_do_not_change_the_radii(count, tile, neighbours):
    x = torch.from_numpy(np.random.default_rng(count).normal(size=(count, 3)))
    every = torch.cdist(x, x).sort(1).values[:, neighbours]
    found = squared_radii(x, neighbours, tile).sqrt()
    torch.testing.assert_close(found, every, rtol=1e-6, atol=1e-6)
