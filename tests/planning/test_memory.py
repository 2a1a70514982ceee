"""Bytes by role and stage, and a pass traced without data: both against what is really there."""

import dataclasses

import pytest
import torch

from benchmarks.plan_memory import EDM2, FEW, measure, measured
from sid_ray.config.distill_config import replace
from sid_ray.distributed.deepspeed_role import BUCKET
from sid_ray.planning.host_memory import (
    first_rank_bytes,
    host_bytes,
    moved_bytes,
    offloaded_bytes,
    snapshot_bytes,
    start_bytes,
)
from sid_ray.planning.memory import (
    FAKE_SCORE,
    GENERATOR,
    TEACHER,
    Layout,
    Network,
    checkpoint_bytes,
    moments,
    peak,
    role_state,
    sent_bytes,
    start,
    state,
)
from sid_ray.planning.trace_memory import FusedAttention, LiveBytes, Traced, trace
from sid_ray.recipes.registry import recipe
from tests.support.trajectories import spawn

COUNT = 1_000_000
NETWORK = Network(COUNT, small=1000, text=70)
PASSES = {FAKE_SCORE: 10_000_000, GENERATOR: 20_000_000}


def layout(stage: int, gpus: int = 4, teacher: int = 0, **more) -> Layout:
    stages = {TEACHER: teacher, FAKE_SCORE: stage, GENERATOR: stage}
    return Layout(gpus, stages, bucket=1000, live=COUNT, **more)


@pytest.mark.parametrize(("stage", "words"), [(0, 3), (1, 1.75), (2, 1.75), (3, 1.25)])
def test_what_a_role_keeps_at_each_stage(stage, words):
    """In units of the network: 1 + 2, 1 + 3/4, 1 + 3/4, 5/4; buckets and small weights apart."""
    kept = role_state(FAKE_SCORE, NETWORK, layout(stage))
    more = 4 * (1000 + 1000) if stage == 3 else 0
    assert sum(kept.values()) == 4 * COUNT * words + more
    averaged = role_state(GENERATOR, NETWORK, layout(stage))
    assert averaged[GENERATOR, "average"] == COUNT
    assert "average" not in dict(kept)


def test_a_first_moment_that_is_not_state_is_not_counted():
    given = layout(1, moments={FAKE_SCORE: 1, GENERATOR: 2})
    assert role_state(FAKE_SCORE, NETWORK, given)[FAKE_SCORE, "moments"] == COUNT
    assert role_state(GENERATOR, NETWORK, given)[GENERATOR, "moments"] == 2 * COUNT
    offloaded = layout(1, moments={FAKE_SCORE: 1, GENERATOR: 2}, offload=True)
    assert snapshot_bytes(NETWORK, offloaded) == (2 + 3) * COUNT


def test_one_gpu_holds_weights_moments_and_gradients_alone():
    given = layout(0, gpus=1, moments={FAKE_SCORE: 1, GENERATOR: 1})
    kept = sum(role_state(FAKE_SCORE, NETWORK, given).values())
    assert kept == 2 * 4 * COUNT
    none = dict.fromkeys(PASSES, 0)
    for moment in moments(NETWORK, given, none)[1:]:
        assert moment.total == sum(state(NETWORK, given).values()) + 4 * COUNT


def test_the_teacher_is_whole_or_in_parts():
    assert role_state(TEACHER, NETWORK, layout(2))[TEACHER, "weights"] == 4 * COUNT
    assert role_state(TEACHER, NETWORK, layout(2, teacher=3))[TEACHER, "weights"] == COUNT + 4000
    assert state(NETWORK, layout(2, reserve=5))["reserve", "other"] == 5


def test_offloading_moves_masters_and_moments_to_the_host():
    plain, offloaded = (state(NETWORK, layout(2, offload=on)) for on in (False, True))
    assert sum((plain - offloaded).values()) == 2 * 3 * COUNT
    locked = 1 << 20  # page-locked memory is given out in powers of two; a part is COUNT bytes
    for stage, passes, words in (
        (1, 1, 0),
        (1, 8, 0),
        (2, 1, 0),
        (2, 8, 2 * COUNT),
        (3, 1, locked),
    ):
        expected = 2 * (2 * COUNT + 2 * locked + words)  # of each role; at stage 3 masters are not
        expected -= 2 * (locked - COUNT) if stage == 3 else 0
        assert offloaded_bytes(NETWORK, layout(stage, offload=True), passes) == expected, stage
    assert offloaded_bytes(NETWORK, layout(0, offload=True), 1) == 0


def test_the_host_keeps_copies_for_checkpoints_without_offloading_too():
    for stage in range(4):
        assert host_bytes(NETWORK, layout(stage), passes=8) == 2 * 3 * COUNT
    offloaded = layout(2, offload=True)
    more = host_bytes(NETWORK, offloaded, 8) - offloaded_bytes(NETWORK, offloaded, 8)
    assert more == 2 * 3 * COUNT
    assert first_rank_bytes(NETWORK, evaluates=False) == 4 * COUNT
    assert first_rank_bytes(NETWORK, evaluates=True) == 3 * 4 * COUNT


def test_no_network_is_whole_on_a_gpu_at_the_start_of_stage_3():
    """But for one parameter: what a run keeps is all that a GPU must have room for."""
    network = dataclasses.replace(NETWORK, largest=700)
    given = layout(3, gpus=8, teacher=3, reserve=5)
    kept = sum(state(network, given).values())
    assert start(network, given).total == kept + 4 * 700
    assert peak(network, given, dict.fromkeys(PASSES, 0)).name != "start"
    # A teacher in half precision is made ready layer by layer, never whole in float32.
    half = layout(3, gpus=8, teacher=0)
    half = dataclasses.replace(half, teacher=2 * COUNT)
    assert start(network, half).total == sum(state(network, half).values()) + 2 * 4 * 700


def test_stages_1_and_2_are_laid_side_by_side_before_the_teacher_is_there():
    given = dataclasses.replace(layout(1), teacher=2 * COUNT)
    expected = sum(state(NETWORK, given).values()) - 2 * COUNT + 4 * COUNT
    assert start(NETWORK, given).total == expected
    plain = layout(0, gpus=1)
    assert start(NETWORK, plain).total == sum(state(NETWORK, plain).values())


def test_each_worker_reads_the_network_for_itself():
    assert start_bytes(NETWORK, layout(2), passes=1) == 4 * COUNT
    assert start_bytes(NETWORK, layout(3), passes=1) == 5 * COUNT
    offloaded = layout(2, offload=True)
    more = offloaded_bytes(NETWORK, offloaded, 8)
    assert start_bytes(NETWORK, offloaded, 8) == 4 * COUNT + more


def test_offloading_moves_gradients_in_every_pass_at_stages_2_and_3():
    """In bytes a parameter of one role: DeepSpeed's copies, counted in the rehearsal's sources."""
    moved = {
        (stage, passes): moved_bytes(NETWORK, layout(stage, offload=True), passes) / 2 / (COUNT / 4)
        for stage in (1, 2, 3)
        for passes in (1, 2, 24)
    }
    assert [moved[1, n] for n in (1, 2, 24)] == [8, 8, 8]
    assert [moved[2, n] for n in (1, 2, 24)] == [8, 4 + 16, 4 + 8 * 24]
    assert [moved[3, n] for n in (1, 2, 24)] == [16, 24, 8 + 8 * 24]
    assert moved_bytes(NETWORK, layout(3), 24) == 0


def test_the_fullest_moment_is_one_of_the_iteration():
    for stage in range(4):
        found = moments(NETWORK, layout(stage), PASSES)
        fullest = peak(NETWORK, layout(stage), PASSES)
        assert fullest.total == max(moment.total for moment in found)
        assert fullest.name == "generator pass"
        assert fullest.total > sum(state(NETWORK, layout(stage)).values()) + PASSES[GENERATOR]
        by_role = [fullest.of_role(role) for role in (TEACHER, FAKE_SCORE, GENERATOR, "pass")]
        assert sum(sum(sizes.values()) for sizes in by_role) == fullest.total
    assert peak(NETWORK, layout(2), dict.fromkeys(PASSES, 0)).name != "generator pass"


def test_higher_stages_send_more_and_one_gpu_nothing():
    sent = [sent_bytes(NETWORK, layout(stage), passes=4) for stage in range(4)]
    assert sent[0] == 2 * 2 * 3 * COUNT < sent[1] == 1.5 * sent[0] < sent[2] < sent[3]
    assert sent_bytes(NETWORK, layout(3, gpus=1), passes=4) == 0


def test_a_checkpoint_has_what_is_stored_and_the_average():
    assert checkpoint_bytes(NETWORK, {FAKE_SCORE: 2, GENERATOR: 3}) == 4 * COUNT * 6


def test_live_bytes_are_counted_until_freed():
    known = torch.empty(100, device="meta")
    with LiveBytes([known]) as live:
        kept = known + 1
        view = kept[:10]
        gone = torch.empty(1000, device="meta")
        del gone
    assert (live.now, live.peak) == (400, 4400)
    del kept
    assert live.now == 400
    del view
    assert live.now == 0


def test_attention_keeps_no_matrix_of_scores():
    q = torch.empty(1, 1, 1024, 64, device="meta", requires_grad=True)
    with LiveBytes([q]) as live, FusedAttention():
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert out.shape == q.shape
    assert live.now < 2 * 4 * q.numel() < 4 * 1024 * 1024


def test_between_traced_sizes_is_the_chord():
    traced = Traced({1: {"p": 10}, 3: {"p": 30}, 5: {"p": 90}})
    assert [traced.at(n)["p"] for n in (1, 2, 3, 4, 5, 6)] == [10, 20, 30, 60, 90, 120]
    assert Traced({7: {"p": 5}}).at(7) == {"p": 5}


def test_a_traced_pass_is_what_the_allocator_gives_out():
    config = replace(recipe("digits-sida"), training__precision="bfloat16", objective__logvar=True)
    expected = trace(config, EDM2, [4]).at(4)
    # Kernels of a processor without bfloat16 take scratch memory of their own, 9 to 13 % here; with
    # it the difference was below 5 %.
    for phase in (FAKE_SCORE, GENERATOR):
        assert expected[phase] == pytest.approx(measured(config, EDM2, phase, 4), rel=0.15)


@pytest.mark.slow
def test_deepspeed_holds_what_is_predicted(tmp_path):
    spawn(measure, 2, str(tmp_path), [0, 1, 2, 3], FEW)
    assert BUCKET == 50_000_000  # the processes had their own
    for stage, expected, found in torch.load(tmp_path / "rows.pt"):
        assert expected["kept"] == pytest.approx(found["kept"], rel=0.002), stage
        assert expected["pass"] == pytest.approx(found["pass"], rel=0.05), stage
        assert 0.98 < expected["update"] / found["update"] < 1.25, stage
