"""The order of samples: all of them once an epoch, mixed, and the same for any set of workers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.data.order import Order
from sid_ray.groups import GroupPlan


def flat(order: Order, positions: np.ndarray) -> np.ndarray:
    """Numbers of the samples at these positions, in the order of the files."""
    starts = np.concatenate([[0], np.cumsum(order.rows)])
    row_group, row = order.locate(positions)
    assert (row >= 0).all()
    assert (row < order.rows[row_group]).all()
    return starts[row_group] + row


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    return flat(order, np.arange(epoch * order.count, (epoch + 1) * order.count))


@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    group_size=st.integers(1, 17),
    num_groups=st.integers(1, 20),
    window=st.integers(1, 6),
    seed=st.integers(0, 5),
    lanes=st.integers(1, 20),
)
@settings(max_examples=150, deadline=None)
def test_every_sample_comes_once_an_epoch(rows, group_size, num_groups, window, seed, lanes):
    order = Order(rows, group_size, num_groups, window, seed, lanes=lanes)
    for epoch in (0, 1, 7):
        assert sorted(epoch_of(order, epoch)) == list(range(order.count))


@given(
    world_size=st.sampled_from([1, 2, 3, 4, 7]),
    micro_batch=st.sampled_from([1, 3, 6, 12, 18]),
    resumed=st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_every_set_of_workers_sees_the_same_stream(world_size, micro_batch, resumed):
    """Over the border of an epoch, by an Order that is made anew in the middle of one."""
    rows = [31, 40, 7, 40, 33, 40, 40, 25]
    whole = Order(rows, 6, 8, 3, seed=1)
    expected = flat(whole, np.arange(48 * 40))
    plan, begin = GroupPlan(48, 6, micro_batch, world_size), 48 * resumed
    for rank in range(world_size):
        order = Order(rows, 6, 8, 3, seed=1)
        for images_seen in range(begin, begin + 48 * 10, 48):
            for step in plan.micro_steps(rank):
                for group in step.groups:
                    first = images_seen + group * 6
                    positions = np.arange(first + step.start, first + step.stop)
                    assert np.array_equal(flat(order, positions), expected[positions])


def test_positions_may_come_in_any_order():
    order, positions = Order([50] * 9, 4, 6), np.random.default_rng(0).permutation(3 * 450)
    forward = flat(Order([50] * 9, 4, 6), np.arange(3 * 450))
    assert np.array_equal(flat(order, positions), forward[positions])


def test_seeds_streams_and_epochs_have_orders_of_their_own():
    """Two random orders of N samples agree in about one place."""
    rows = [100] * 50
    orders = [
        epoch_of(Order(rows, 16, 8, 4, seed, stream), epoch)
        for seed, stream, epoch in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0))
    ]
    for index, one in enumerate(orders):
        for other in orders[:index]:
            assert (one == other).sum() < 15


@pytest.mark.parametrize("rows", [[200] * 100, [1] * 20_000, [20_000]])
def test_neighbours_in_the_files_end_up_apart(rows):
    """Half of them by more than an eighth of an epoch, where row groups are many or one.

    In a uniformly random order it would be three quarters. Row groups of a window stay together,
    so neighbours within one do; what counts is that batches are mixed, see the next test.
    """
    order = Order(rows, 16, 32)
    place = np.empty(order.count, np.int64)
    place[epoch_of(order, 0)] = np.arange(order.count)
    apart = np.abs(np.diff(place))
    assert np.median(apart) > 100
    assert (apart == 1).mean() < 0.01


def test_batches_of_sorted_labels_are_mixed():
    """Ten classes one after the other in 200 row groups; 16 groups of 16, windows of 4.

    A batch reads 16 windows of 4 row groups. Drawn evenly, a class would have 25.6 of 256 samples,
    with a deviation of 4.8; from 64 random row groups it is about 9.
    """
    order = Order([100] * 200, 16, 16)
    labels = epoch_of(order, 0) // 2000
    batches = labels[: len(labels) // 256 * 256].reshape(-1, 256)
    counts = np.stack([np.bincount(batch, minlength=10) for batch in batches])
    assert counts.min() > 0, "every class in every batch"
    assert counts.std() < 12
    groups = labels.reshape(-1, 16)
    distinct = np.array([len(np.unique(group)) for group in groups])
    assert (distinct >= 2).mean() > 0.9, "and a logical group has several"


@pytest.mark.parametrize(
    ("rows", "count", "group_size", "num_groups", "limit"),
    [
        (256, 1_281_167, 32, 64, 1.02),  # ImageNet
        (256, 50_000, 16, 16, 1.1),  # CIFAR-10
        (1000, 202_599, 64, 8, 1.1),
        (256, 1_281_167, 2, 1024, 1.05),  # EDM2-XXL: groups share lanes
    ],
)
def test_a_row_group_is_read_by_one_rank(rows, count, group_size, num_groups, limit):
    """But for those in which one lane ends and the next begins."""
    sizes = [min(rows, count - start) for start in range(0, count, rows)]
    order = Order(sizes, group_size, num_groups)
    positions = np.arange(count, 2 * count)  # of the second epoch, which begins within a group
    row_groups = order.locate(positions).row_group
    for world_size in (1, 3, 8, 64 if num_groups >= 64 else 2):
        ranks = positions // group_size % num_groups % world_size
        reads = len(np.unique(row_groups * world_size + ranks))
        assert reads / len(sizes) <= limit


def test_a_lane_goes_through_its_windows_one_after_the_other():
    """So a rank holds few row groups at a time: a window a lane."""
    order = Order([256] * 500, 32, 8)
    lane = np.arange(128_000).reshape(-1, 8, 32)[:, 2].ravel()
    row_groups = order.locate(lane).row_group
    spans = [np.ptp(np.nonzero(row_groups == group)[0]) for group in np.unique(row_groups)]
    assert max(spans) < 4 * 256


def test_it_costs_nothing_beside_a_step():
    """2048 positions of ImageNet in 5,000 row groups: below a millisecond on an idle core."""
    order = Order([256] * 5000, 32, 64)
    batches = [np.arange(n, n + 2048) for n in range(0, 2048 * 60, 2048)]
    order.locate(batches[0])
    began = time.process_time()
    for batch in batches:
        order.locate(batch)
    assert (time.process_time() - began) / len(batches) < 0.01
    shuffles = sum(found.nbytes for found in order._shuffles.values())
    assert shuffles + sum(a.nbytes for e in order._epochs.values() for a in e) < 10e6
