"""Any split of the batch covers every sample once, with equal passes on every rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sid_ray.errors import UserError
from sid_ray.groups import GroupPlan

sizes = st.integers(1, 4).flatmap(
    lambda log: st.tuples(
        st.integers(1, 33),  # groups
        st.just(2**log),  # group size
        st.sampled_from([1, 2, 2**log, 2**log * 2, 2**log * 3]),  # micro batch
    )
)


@given(sizes, st.integers(1, 33))
def test_every_sample_is_computed_once(size, world_size):
    groups, group_size, micro_batch = size
    world_size = min(world_size, groups)
    plan = GroupPlan(groups * group_size, group_size, micro_batch, world_size)
    seen = []
    for rank in range(world_size):
        steps = plan.micro_steps(rank)
        assert len(steps) == plan.passes_a_rank
        for micro_step in steps:
            assert len(micro_step.groups) * (micro_step.stop - micro_step.start) <= max(
                micro_batch, 1
            )
            if micro_step.weight:
                seen += [
                    (group, sample)
                    for group in micro_step.groups
                    for sample in range(micro_step.start, micro_step.stop)
                ]
    assert sorted(seen) == [(g, s) for g in range(groups) for s in range(group_size)]


@pytest.mark.parametrize("world_size", [3, 5, 7])
def test_uneven_world_sizes_are_ordinary(world_size):
    plan = GroupPlan(512, 16, 16, world_size)
    assert plan.passes_a_rank == -(-32 // world_size)
    padding = sum(s.weight == 0 for rank in range(world_size) for s in plan.micro_steps(rank))
    assert padding == plan.passes_a_rank * world_size - 32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((100, 16, 16, 1), "not a multiple of group size 16"),
        ((64, 16, 24, 1), "neither a multiple nor a divisor"),
        ((64, 16, 16, 5), "use 1 to 4 workers"),
        ((64, 16, 16, 0), "use 1 to 4 workers"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        GroupPlan(*arguments)
