"""benchmarks/scaling_model.py against numbers worked out by hand, and properties."""

from dataclasses import replace

import pytest

from benchmarks.scaling_model import (
    GATHER,
    REDUCE,
    SCATTER,
    Collective,
    MeasuredLink,
    Sizes,
    Stages,
    StatedLink,
    Work,
    collectives,
    iteration,
    sent_bytes,
)
from sid_ray.errors import UserError
from sid_ray.groups import GroupPlan

SIZES = Sizes(large=(600, 300), small=(100,), constrained=True)
WORK = Work(fake_pass=1.0, generator_pass=2.0, adam=0.4, normalise=0.1, average=0.2)
LINK = StatedLink("test", within=4000.0, between=400.0, share=1.0, hop_within=0.0, hop_between=0.0)
PLAN = GroupPlan(batch_size=16, group_size=2, micro_batch=2, world_size=1)  # 8 groups


def on(workers, stage=0, **more):
    return iteration(WORK, replace(PLAN, world_size=workers), Stages(stage), SIZES, LINK, **more)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_worker_talks_to_nobody(stage):
    found = on(1, stage)
    assert found.communication == 0
    assert found.total == pytest.approx(8 * 3.0 + 0.4 + 0.1 + 0.2)


def test_twice_the_workers_compute_half_as_long_while_there_are_groups():
    assert [on(workers).passes for workers in (1, 2, 4, 8)] == [24, 12, 6, 3]


def test_padding_computes_as_long_as_the_fullest_rank():
    assert on(3).passes == 9  # 3, 3 and 2 groups
    assert on(5).passes == on(7).passes == on(4).passes


def test_more_workers_than_groups_are_refused():
    with pytest.raises(UserError, match="use 1 to 8 workers"):
        on(9)


def test_workers_that_share_cores_take_longer():
    assert on(4, cores=2).passes == 2 * on(4).passes
    assert on(2, cores=4) == on(2)


def test_update_shares_out_adam_but_not_normalising():
    assert on(4, 0).update == pytest.approx(0.4 + 0.1 + 0.05)
    assert on(4, 1).update == on(4, 3).update == pytest.approx(0.1 + 0.1 + 0.05)


def test_collectives_by_hand():
    """1,000 elements in buckets of 400 are three pieces of 334; two roles, three passes."""
    made = {stage: collectives(Stages(stage, bucket=400), SIZES, 3) for stage in range(4)}
    assert made[0] == [Collective(REDUCE, 1000, 2)]
    assert made[1] == [Collective(REDUCE, 334, 6), Collective(GATHER, 334, 6)]
    assert made[2] == [Collective(REDUCE, 334, 18), Collective(GATHER, 334, 6)]
    gathered = 3 * 7 + 2  # and both roles' weights once each, to be normalised
    assert made[3] == [
        Collective(SCATTER, 334, 18), Collective(GATHER, 600, gathered),
        Collective(GATHER, 300, gathered),
    ]  # fmt: skip
    teacher = collectives(Stages(3, 3, 400), SIZES, 3)[3:]
    assert teacher == [Collective(GATHER, 600, 6), Collective(GATHER, 300, 6)]


def test_bytes_by_hand():
    """A quarter stays where it is; an all-reduce goes round twice."""
    assert sent_bytes([Collective(REDUCE, 1000, 2)], 4) == 2 * 2 * 4000 * 3 // 4
    assert sent_bytes([Collective(GATHER, 1000, 2)], 4) == 2 * 4000 * 3 // 4
    assert sent_bytes([Collective(SCATTER, 1000, 2)], 1) == 0


@pytest.mark.parametrize("passes", [2, 5])
def test_later_stages_send_more(passes):
    sent = [sent_bytes(collectives(Stages(stage), SIZES, passes), 4) for stage in range(4)]
    assert sent == sorted(sent) and len(set(sent)) == 4
    with_teacher = sent_bytes(collectives(Stages(3, 3), SIZES, passes), 4)
    assert with_teacher > sent[3]


def test_a_ring_within_a_node_and_over_two_by_hand():
    """4,000 bytes, seven of eight parts go round at 4,000 bytes a second; over two nodes at 400."""
    assert LINK.seconds(GATHER, 1000, 8) == pytest.approx(7 / 8)
    assert LINK.seconds(REDUCE, 1000, 8) == pytest.approx(2 * 7 / 8)
    assert LINK.seconds(GATHER, 1000, 16) == pytest.approx(10 * 15 / 16)
    waiting = replace(LINK, hop_within=1.0, hop_between=100.0)
    # Fifteen steps over two nodes: one of them leaves a node.
    assert waiting.seconds(GATHER, 1000, 16) == pytest.approx(10 * 15 / 16 + 14 + 100)
    assert replace(LINK, share=0.5).seconds(GATHER, 1000, 8) == pytest.approx(2 * 7 / 8)


def test_communication_is_the_sum_of_collectives():
    found = on(8, 1)  # each of two roles: an all-reduce and a gathering of 1,000 elements
    assert found.communication == pytest.approx(2 * 3 * 7 / 8)
    assert found.total == found.passes + found.update + found.communication


def test_overlap_hides_no_more_than_there_is_to_hide_behind():
    slow = replace(LINK, within=1.0)
    plan = replace(PLAN, world_size=8)
    found = iteration(WORK, plan, Stages(1), SIZES, slow, overlap=1.0)
    assert found.hidden == found.passes < found.communication
    assert on(2, 1, overlap=0.5).hidden == pytest.approx(on(2, 1).communication / 2)


def test_measured_collectives_are_read_off_straight_lines():
    link = MeasuredLink({2: {REDUCE: [(10, 1.0), (30, 2.0)]}})
    assert [link.seconds(REDUCE, size, 2) for size in (5, 10, 20, 60)] == [1.0, 1.0, 1.5, 4.0]
