"""Adapters on paper: one base, what each role trains, and passes on the trees that share it."""

import dataclasses

import pytest
import torch

from benchmarks.plan_memory import EDM2, RANK, measure, measured
from sid_ray import cli
from sid_ray.config.distill_config import replace, with_plain_resources
from sid_ray.denoisers.adapters import with_adapter
from sid_ray.denoisers.quantised import quantised
from sid_ray.distributed.deepspeed_role import PERSISTENT
from sid_ray.errors import UserError
from sid_ray.planning import fit
from sid_ray.planning.choose import choose_resources
from sid_ray.planning.fit import Gpus, Planner, stage_variants
from sid_ray.planning.host_memory import first_rank_bytes, snapshot_bytes
from sid_ray.planning.lighter import lighter_runs
from sid_ray.planning.machine import Machine
from sid_ray.planning.memory import (
    FAKE_SCORE,
    GENERATOR,
    GIB,
    TEACHER,
    Layout,
    Network,
    checkpoint_bytes,
    role_state,
    sent_bytes,
    start,
    state,
)
from sid_ray.planning.network_sizes import (
    base_bytes,
    bytes_4bit,
    bytes_8bit,
    frozen_bytes,
    sizes_of,
)
from sid_ray.planning.trace_cache import trace_key
from sid_ray.planning.trace_memory import Traced, trace
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.adapter_settings import run_adapter
from sid_ray.weights.networks import layout
from tests.support.trajectories import spawn

EMOJI = replace(recipe("emoji-lsg"), adapter__rank=RANK)
TEACHER_IS = teacher_of(EMOJI)
COUNT, FEW = 1_000_000, 10_000


@pytest.fixture
def few_bytes(monkeypatch):
    """No trace: a pass takes next to nothing."""
    few = {FAKE_SCORE: 10_000, GENERATOR: 20_000}
    monkeypatch.setattr(fit, "kept_trace", lambda *_: Traced({1: few, 64: few}))


def on_gpus(gpus: int, stage: int = 0, **more) -> Layout:
    stages = {TEACHER: 0, FAKE_SCORE: stage, GENERATOR: stage}
    return Layout(gpus, stages, bucket=0, live=COUNT, teacher=2 * COUNT, **more)


def network_with(*roles: str) -> Network:
    return Network(COUNT, buffers=50, adapters=dict.fromkeys(roles, FEW))


def test_an_adapter_keeps_what_it_trains_and_nothing_of_the_base():
    network, one = network_with(FAKE_SCORE, GENERATOR), on_gpus(1)
    assert sum(role_state(FAKE_SCORE, network, one).values()) == 4 * FEW * 3
    assert sum(role_state(GENERATOR, network, one).values()) == 4 * FEW * 4  # its average, too
    assert role_state(TEACHER, network, one) == {
        ("teacher", "weights"): 2 * COUNT,
        ("teacher", "other"): 50,
    }
    assert sum(state(network, one).values()) == 2 * COUNT + 50 + 4 * FEW * 7
    # Behind the base, for which one layer is there twice at most.
    largest = dataclasses.replace(network, largest=700)
    assert start(largest, one).total == max(
        sum(state(network, one).values()), 2 * COUNT + 50 + 5600
    )


def test_the_other_role_is_whole():
    network, two = network_with(FAKE_SCORE), on_gpus(2, stage=1)
    assert role_state(FAKE_SCORE, network, two)[FAKE_SCORE, "weights"] == 4 * FEW
    assert role_state(GENERATOR, network, two)[GENERATOR, "weights"] == 4 * COUNT
    assert role_state(GENERATOR, network, two)[GENERATOR, "other"] == 50
    stored = {FAKE_SCORE: 2, GENERATOR: 2}
    assert checkpoint_bytes(network, stored) == 4 * (2 * FEW + 3 * COUNT) + 50
    assert checkpoint_bytes(network_with(FAKE_SCORE, GENERATOR), stored) == 4 * 5 * FEW


def test_what_is_sent_and_copied_is_the_adapters():
    whole, small = Network(COUNT), network_with(FAKE_SCORE, GENERATOR)
    for stage in (0, 1, 2):
        sent = [sent_bytes(network, on_gpus(4, stage), 8) for network in (whole, small)]
        assert sent[0] * FEW == sent[1] * COUNT > 0
    assert snapshot_bytes(small, on_gpus(1)) == 2 * 3 * 4 * FEW
    assert first_rank_bytes(small, evaluates=False) == 4 * FEW


@pytest.mark.parametrize("name", ["emoji-lsg", "digits-sid"])
def test_adapters_are_counted_as_they_are_built(name):
    config = replace(recipe(name), adapter__rank=RANK)
    description = teacher_of(config)
    base = layout(description, "the teacher").to_empty(device="cpu")
    built = with_adapter(base, run_adapter(config, description.family))
    count = sum(parameter.numel() for parameter in built.parameters())
    found = sizes_of(description, PERSISTENT, 0, config)
    assert found.adapters == {FAKE_SCORE: count, GENERATOR: count}
    assert found.parameters == sizes_of(description, PERSISTENT).parameters
    fake = sizes_of(description, PERSISTENT, 0, replace(config, adapter__roles="fake"))
    assert fake.adapters == {FAKE_SCORE: count}


def test_a_base_has_the_bytes_of_its_precision():
    count = sizes_of(TEACHER_IS, PERSISTENT).parameters
    wide, half, eight, four = (
        base_bytes(TEACHER_IS, held, "bfloat16") for held in ("float32", "bfloat16", "8bit", "4bit")
    )
    assert wide == 4 * count
    assert half >= frozen_bytes(TEACHER_IS, "bfloat16")  # norms stay float32
    assert 2 * count < half < 2.05 * count
    assert four < eight < half


def test_quantised_weights_have_the_bytes_of_their_codes():
    weight = torch.nn.Linear(1000, 96).weight
    for count, held in ((bytes_8bit, "8bit"), (bytes_4bit, "4bit")):
        assert count(weight) == sum(part.nbytes for part in quantised(weight, held))


@pytest.mark.parametrize("roles", ["both", "fake", "generator"])
def test_a_traced_pass_of_adapters_is_what_the_allocator_gives_out(roles):
    config = replace(EMOJI, adapter__roles=roles)
    expected = trace(config, TEACHER_IS, [4]).at(4)
    for phase in (FAKE_SCORE, GENERATOR):
        found = measured(config, TEACHER_IS, phase, 4)
        assert expected[phase] == pytest.approx(found, rel=0.05), phase


def test_so_is_one_whose_layers_make_their_weights_anew():
    config = replace(recipe("digits-sida"), adapter__rank=RANK, objective__logvar=True)
    expected = trace(config, EDM2, [4]).at(4)
    for phase in (FAKE_SCORE, GENERATOR):
        assert expected[phase] == pytest.approx(measured(config, EDM2, phase, 4), rel=0.15)


def test_a_trace_is_kept_by_what_it_depends_on():
    plain = with_plain_resources(EMOJI)

    def key(**changes) -> str:
        return trace_key(replace(plain, **changes), TEACHER_IS, [1])

    others = [
        {"adapter__rank": 4}, {"adapter__targets": "to_q"}, {"adapter__roles": "fake"},
        {"adapter__base": "bfloat16"}, {"training__group_size": 8},
    ]  # fmt: skip
    assert len({key(), *(key(**change) for change in others)}) == 1 + len(others)
    assert key(adapter__alpha=3.0) == key(adapter__base="float32") == key()
    assert key(adapter__base="4bit") == key(), "traced as what a pass makes of it"


def test_no_stage_shares_out_a_base(few_bytes):
    assert list(stage_variants(EMOJI, 1)) == ["none"]
    assert list(stage_variants(EMOJI, 4)) == ["0", "1", "2"]
    offloaded = replace(EMOJI, resources__offload_optimizer=True)
    assert list(stage_variants(offloaded, 1)) == list(stage_variants(offloaded, 4)) == ["1", "2"]
    for gpus in (1, 4):
        choice = choose_resources(EMOJI, TEACHER_IS, Machine.alike(1, gpus, 24))
        chosen = choice.config.check().chosen
        assert chosen.zero_stage < 3 and chosen.teacher_zero_stage == 0
        planned = Planner(TEACHER_IS).peak(choice.config, Gpus.of(gpus, 24))
        assert planned.total < 24 * GIB


def test_a_refusal_names_a_lighter_run(few_bytes):
    whole = recipe("emoji-lsg")
    assert [flag for flag, _ in lighter_runs(whole, TEACHER_IS.family)] == ["--adapter.rank 64"]
    smaller = {
        "auto": ["bfloat16", "8bit", "4bit"],
        "float16": ["8bit", "4bit"],
        "8bit": ["4bit"],
        "4bit": [],
    }
    for base, expected in smaller.items():
        found = list(lighter_runs(replace(EMOJI, adapter__base=base), TEACHER_IS.family))
        assert [flag for flag, _ in found] == [f"--adapter.base {held}" for held in expected]
        assert [config.adapter.base for _, config in found] == expected
    count = 4 * Planner(TEACHER_IS).network.parameters
    room = Machine.alike(1, 1, 4 * count / GIB)  # whole networks need seven times as much
    with pytest.raises(UserError, match=r"What fits: --adapter.rank 64; or 1 GPU of"):
        choose_resources(whole, TEACHER_IS, room, reserve_gib=0)


def test_the_plan_says_what_is_trained_over_what(few_bytes, capsys):
    def plan(*more: str) -> str:
        asked = ["emoji-lsg", "--gpus", "1", "--gpu-memory", "24", "--adapter.rank", str(RANK)]
        assert cli.exit_code_of(["plan", *asked, *more]) == 0
        return " ".join(capsys.readouterr().out.split())

    out = plan()
    assert "two adapters of rank 8 with 61,440 parameters each over the teacher's 986,099" in out
    assert "held once in float32" in out
    assert "checkpoint: 1.2 MiB" in out
    out = plan("--adapter.roles", "fake", "--adapter.base", "4bit")
    assert "the fake score as an adapter of rank 8" in out
    assert "held once in 4bit, the generator whole" in out


@pytest.mark.slow
def test_deepspeed_holds_an_adapter_as_predicted(tmp_path):
    spawn(measure, 2, str(tmp_path), [1, 2], 100_000)
    rows = [row for row in torch.load(tmp_path / "rows.pt") if "adapter" in row[0]]
    assert len(rows) == 2
    for stage, expected, found in rows:
        assert expected["kept"] == pytest.approx(found["kept"], rel=0.01), stage
        assert expected["pass"] == pytest.approx(found["pass"], rel=0.1), stage
        assert 0.95 < expected["update"] / found["update"] < 1.25, stage
