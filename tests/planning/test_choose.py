"""What `auto` becomes: on made-up machines, for real recipes, whatever a person names."""

import dataclasses
import random
import re
from functools import cache
from pathlib import Path

import pytest

from sid_ray.config.auto import AUTO
from sid_ray.config.chosen import left_open
from sid_ray.config.distill_config import DistillConfig, flatten, replace, with_plain_resources
from sid_ray.errors import UserError
from sid_ray.planning import fit, here, on_gpus, trace_cache, trace_memory
from sid_ray.planning.choose import choose_resources
from sid_ray.planning.fit import GIB, Gpus, Planner
from sid_ray.planning.machine import Machine, Node
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.planning.on_gpus import ladder
from sid_ray.planning.profile import Profile
from sid_ray.planning.sizes import at_size, resources_in_words
from sid_ray.planning.trace_memory import Traced
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import RECIPES, recipe

DIGITS, XXL, SMALL = (recipe(n) for n in ("digits-sid", "img512-xxl-sida", "img512-s-sid"))
# GiB that trace_memory counts of one image and of 2048, plain and with activation checkpointing.
TRACED = {
    "img512-xxl-sida": (((6.934, 7.253), (1426.07, 2099.146)), ((3.59, 3.567), (424.66, 531.73))),
    "img512-s-sid": (((1.347, 1.573), (410.803, 875.118)), ((0.669, 0.669), (107.328, 227.513))),
    "digits-sid": (((0.001, 0.001), (1.1, 2.7)), ((0.001, 0.001), (0.4, 0.8))),
}


def recorded(config, description, sizes):
    """A trace that takes no time: the chord of what was traced once."""
    one, most = TRACED[config.recipe][config.chosen.activation_checkpointing]
    return Traced(
        {
            images: {phase: int(GIB * gib) for phase, gib in zip(PHASES, each, strict=True)}
            for images, each in ((1, one), (2048, most))
        }
    )


PHASES = (FAKE_SCORE, GENERATOR)
FROZEN = 3 * GIB  # a whole teacher in half precision: EDM2-XXL's


@pytest.fixture(autouse=True)
def no_traces(monkeypatch):
    monkeypatch.setattr(fit, "kept_trace", recorded)
    monkeypatch.setattr(fit, "teacher_size", lambda text, precision, base: FROZEN)


def chosen(config: DistillConfig, machine: Machine, profile: Profile | None = None):
    return choose_resources(config, teacher_of(config), machine, 0, profile)


@cache
def planner_of(name: str) -> Planner:
    return Planner(teacher_of(recipe(name)))


def total_gib(config: DistillConfig, machine: Machine, workers: int) -> float:
    gpus = Gpus(workers, machine.gpu_bytes)
    return planner_of(config.recipe).peak(config, gpus).total / GIB


def test_images_are_contiguous_on_gpus_where_groups_of_channels_are_normalised():
    """As CUDA's kernel returns them (docs/speed.md); a CPU's keeps the order."""
    gpus, cpus = Machine.alike(1, 8, 80), Machine.alike(1, 0, 0)
    assert chosen(DIGITS, gpus).config.chosen.memory_format == "contiguous"
    assert chosen(DIGITS, cpus).config.chosen.memory_format == "channels_last"
    assert chosen(XXL, gpus).config.chosen.memory_format == "channels_last"


def test_a_published_run_on_8_gpus_without_a_flag_uses_them_well():
    """Two images a pass and 2,552 GiB sent in each iteration, before there was auto."""
    machine = Machine.alike(1, 8, 80)
    choice = chosen(XXL, machine)
    resources = choice.config.chosen
    assert (resources.num_workers, resources.min_workers, resources.use_gpu) == (8, 8, True)
    assert resources.zero_stage == 1
    assert XXL.training.group_size == 2 and 24 <= resources.micro_batch <= 44
    assert 60 < total_gib(choice.config, machine, 8) <= 72  # a tenth stays free
    found = re.search(r"ZeRO-1 \(([\d.]+) GiB sent an iteration\)", choice.line)
    assert found is not None
    sent = float(found[1])
    assert 29 < sent < 31
    before = replace(choice.config, resources__zero_stage=2, resources__micro_batch=2)
    assert planner_of(XXL.recipe).sent(before, Gpus.of(8, 80), 2)[0] / GIB > 80 * sent


@pytest.mark.parametrize("config", [DIGITS, SMALL, XXL])
def test_passes_are_equal_and_of_whole_groups(config):
    for gpus in (1, 3, 4, 8):
        try:
            resources = chosen(config, Machine.alike(1, gpus, 80)).config.chosen
        except UserError as error:
            assert "--resources.no-use-gpu" not in str(error)
            continue
        size, micro = config.training.group_size, resources.micro_batch
        rounds = -(-config.training.batch_size // size // resources.num_workers)
        packed = micro // size
        assert micro % size == 0
        assert packed == -(-rounds // -(-rounds // packed))  # fewer groups would take more passes


@pytest.mark.parametrize(("config", "seed"), [(SMALL, 0), (SMALL, 1), (SMALL, 2), (XXL, 1)])
def test_what_is_chosen_fits_on_every_number_of_workers(config, seed):
    """A run that shrinks takes another stage or micro-batch, and never more than there is."""
    draw = random.Random(seed)
    nodes, gpus, gib = draw.randint(2, 6), draw.randint(1, 8), draw.choice((16, 24, 40, 80, 141))
    machine = Machine.alike(nodes, gpus, gib)
    choice = chosen(config, machine)
    least, most = choice.config.chosen.min_workers, choice.config.chosen.num_workers
    assert most == config.training.batch_size // config.training.group_size
    for workers in {least, most, *(draw.randint(least, most) for _ in range(20))}:
        own = at_size(choice.config, choice.sizes, workers)
        assert own.chosen and total_gib(own, machine, workers) <= gib
    now = at_size(choice.config, choice.sizes, max(least, nodes * gpus))
    assert resources_in_words(now) == resources_in_words(choice.config)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_leaves_what_is_auto_to_the_start(name):
    config = recipe(name)
    named = set(dataclasses.asdict(config.resources).items()) - set(
        dataclasses.asdict(DistillConfig().resources).items()
    )
    assert named <= {("use_gpu", True)}
    with pytest.raises(ValueError, match=r"resources\.num_workers is auto"):
        _ = config.chosen


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_workers", 3), ("zero_stage", 2), ("zero_stage", 3), ("teacher_zero_stage", 3),
        ("micro_batch", 8), ("micro_batch", 1), ("activation_checkpointing", True),
        ("activation_checkpointing", False), ("overlap_comm", True), ("compile", "default"),
        ("memory_format", "contiguous"), ("attention", "xformers"), ("offload_optimizer", True),
    ],
)  # fmt: skip
def test_what_a_person_names_stays(field, value):
    config = replace(XXL, **{f"resources__{field}": value})
    choice = chosen(config, Machine.alike(2, 8, 80))
    for workers in (3, 8, 16, 512):
        own = at_size(choice.config, choice.sizes, workers)
        assert getattr(own.resources, field) == value
        assert not left_open(own.resources)


def test_what_saves_memory_is_taken_where_it_is_needed():
    """Blocks are computed again where sending would cost more; the host's memory comes last."""
    seen = []
    for gib in (80, 24, 14):
        resources = chosen(XXL, Machine.alike(1, 8, gib)).config.chosen
        seen.append((resources.activation_checkpointing, resources.offload_optimizer))
    assert seen == [(False, False), (True, False), (True, True)]


def test_offloading_costs_something_in_each_pass():
    """At stage 2 what a pass moves to the host and back, at stage 1 what an update does."""
    machine, planner = Gpus.of(1, 36), planner_of(XXL.recipe)
    cost = {}
    for stage in (1, 2, 3):
        config = replace(
            with_plain_resources(XXL),
            resources__offload_optimizer=True,
            resources__zero_stage=stage,
        )
        cost[stage] = [planner.sent(config, machine, images)[1] for images in (2, 16, 2048)]
    size = 4 * planner.network.parameters
    assert cost[1][2] == cost[2][2] == size * (10 + 10 * 2 * 2)  # one pass
    assert cost[1][0] == size * (1024 * 10 + 10 * 2 * 2)
    assert cost[2][0] - cost[1][0] == size * 10 * 2 * (2 * 1024 - 1)
    assert cost[1][1] < cost[2][1] < cost[3][1] < cost[2][0]


def test_an_optimizer_on_the_host_has_the_nodes_threads():
    """8 CPUs for each GPU of these nodes; one thread where it steps on GPUs."""
    one = chosen(XXL, Machine.alike(1, 1, 36))
    assert one.config.chosen.threads == 8
    assert "optimizer in host memory (8 threads)" in one.line
    assert chosen(XXL, Machine.alike(1, 8, 14)).config.chosen.threads == 8
    assert chosen(XXL, Machine.alike(1, 8, 80)).config.chosen.threads == 1
    named = replace(XXL, resources__offload_optimizer=True)
    assert chosen(named, Machine.alike(1, 8, 80)).config.chosen.threads == 8
    two = chosen(replace(named, resources__num_workers=2), Machine.alike(1, 8, 80))
    assert two.config.chosen.threads == 32
    fewer = chosen(replace(named, resources__threads=3), Machine.alike(1, 8, 80))
    assert fewer.config.chosen.threads == 3
    assert chosen(DIGITS, Machine((Node(cpus=2),))).config.chosen.threads == 1


def test_networks_as_they_are_read_need_the_hosts_memory():
    machine = Machine.alike(1, 8, 80)
    (node,) = machine.nodes
    network = planner_of(XXL.recipe).network
    # 8 workers, each with one of its own; later they share masters, second moments and the average.
    needed = 8 * (4 * network.parameters + network.buffers) / 0.8
    assert needed > 4 * network.parameters * (4 + (3 if XXL.evaluation.every else 1)) / 0.8
    for share, fits in ((1.02, True), (0.98, False)):
        own = dataclasses.replace(node, host_bytes=int(share * needed))
        if fits:
            assert chosen(XXL, Machine((own,))).config.chosen.num_workers == 8
        else:
            with pytest.raises(UserError, match="too small for the networks that workers read"):
                chosen(XXL, Machine((own,)))


def test_offloading_needs_the_hosts_memory():
    small = Machine.alike(1, 1, 36)
    resources = chosen(XXL, small).config.chosen
    assert resources.offload_optimizer and resources.zero_stage in (1, 2, 3)
    node = dataclasses.replace(small.nodes[0], host_bytes=16 * GIB)
    with pytest.raises(UserError) as refused:
        chosen(XXL, Machine((node,)))
    assert str(refused.value).startswith("img512-xxl-sida does not fit on 1 GPU of 36.0 GiB: the ")


def test_the_evaluators_gpu_is_not_a_workers():
    taken = {"GPU": 1.0}
    assert chosen(XXL, Machine.alike(1, 8, 80, taken)).config.chosen.num_workers == 7
    asked = replace(XXL, resources__num_workers=8)
    with pytest.raises(UserError) as refused:
        chosen(asked, Machine.alike(1, 8, 80, taken))
    assert str(refused.value) == (
        "8 workers and the evaluator (evaluation.resources GPU=1) need 9 GPUs, here are 8: lower "
        "--resources.num-workers, or leave --evaluation.resources empty"
    )
    # A node that is the evaluator's own has no CPU for a worker.
    judge = Node(cpus=0, gpus=1, gpu_bytes=16 * GIB, others={"evaluator": 1})
    nodes = (*Machine.alike(2, 4, 80).nodes, judge)
    machine = Machine(nodes, fixed=False, taken={"GPU": 1, "evaluator": 1})
    assert machine.offers(on_gpu=True) == 8 and machine.gpu_bytes == 80 * GIB


def test_without_a_gpu_a_published_run_is_refused_and_a_small_one_is_not(monkeypatch):
    def refuse(*_):
        raise AssertionError("nothing is traced on a CPU")

    monkeypatch.setattr(fit, "kept_trace", refuse)
    machine = Machine((Node(cpus=2),), no_gpu="no NVIDIA driver is here: install one")
    with pytest.raises(UserError) as refused:
        chosen(XXL, machine)
    assert str(refused.value) == (
        "img512-xxl-sida asks for GPUs (resources.use_gpu): no NVIDIA driver is here: install one; "
        "join a cluster with RAY_ADDRESS, or give --resources.no-use-gpu"
    )
    choice = chosen(DIGITS, machine)
    assert choice.line == "2 workers, a CPU each, ZeRO-1, micro-batch 32 (2 groups in a pass)"
    resources = choice.config.chosen
    assert (resources.num_workers, resources.use_gpu, resources.compile) == (2, False, "off")
    # A large image's pass is one group, as before; more workers than groups have nothing to do.
    assert chosen(replace(XXL, resources__use_gpu=False), machine).config.chosen.micro_batch == 2
    many = chosen(DIGITS, Machine((Node(cpus=64),)))
    assert many.config.chosen.num_workers == 4


def test_a_cluster_whose_nodes_are_not_there_yet_grows():
    """Up to what its autoscaler may bring, else up to the groups."""
    machine = Machine((Node(cpus=4),), fixed=False, can_hold={"GPU": 12, "CPU": 96})
    assert machine.has_gpus
    one = Machine((Node(cpus=8, gpus=1, gpu_bytes=141 * GIB),), fixed=False, can_hold={"GPU": 12})
    choice = chosen(XXL, one)
    assert choice.config.chosen.num_workers == 12
    assert choice.line.startswith("1 of up to 12 workers, a GPU of 141 GiB each")
    fewest = choice.config.chosen.min_workers
    assert fewest == choice.sizes[0][0]
    assert chosen(XXL, dataclasses.replace(one, can_hold={})).config.chosen.num_workers == 1024


def profile(**changes) -> Profile:
    found = Profile(
        machine="NVIDIA H100", gpus=8, network="", precision="float16", batch="",
        settings={"micro_batch": 16, "zero_stage": 2, "compile": "default", "overlap_comm": True},
        seconds=9.5, peak_gib=61.0, versions={},
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def test_what_was_measured_wins_where_it_fits():
    machine = Machine.alike(1, 8, 80)
    choice = chosen(XXL, machine, profile())
    own = choice.config.chosen
    assert (own.micro_batch, own.zero_stage, own.compile, own.overlap_comm) == (
        16, 2, "default", True,
    )  # fmt: skip
    assert "9.50 s an iteration measured" in choice.line and "bench measured" in choice.line
    counted = chosen(XXL, machine).config.chosen
    # On another number of GPUs micro-batch and stage are counted, and the kernels stay.
    other = chosen(XXL, machine, profile(gpus=4)).config.chosen
    assert (other.micro_batch, other.zero_stage) == (counted.micro_batch, counted.zero_stage)
    assert (other.compile, other.overlap_comm) == ("default", True)
    larger = chosen(XXL, machine, profile(peak_gib=90.0)).config.chosen
    assert (larger.micro_batch, larger.zero_stage) == (counted.micro_batch, counted.zero_stage)
    named = chosen(replace(XXL, resources__compile="off"), machine, profile()).config.chosen
    assert named.compile == "off" and named.micro_batch == 16


def test_resources_are_no_part_of_a_run():
    """So a resume on another machine is the same run, and a stored config asks anew."""
    asked, choice = XXL, chosen(XXL, Machine.alike(1, 8, 80))
    assert asked.identity() == choice.config.identity()
    assert DistillConfig.from_json(asked.stored()).resources == asked.resources
    assert flatten(asked)["resources.num_workers"] == AUTO
    earlier = with_plain_resources(asked)
    assert DistillConfig.from_json(earlier.to_json()) == earlier


def test_the_ladder_has_every_small_number_and_reaches_both_ends():
    steps = ladder(1, 1024, 37)
    assert steps[0] == 1024 and set(range(1, 17)) <= set(steps) and 37 in steps
    assert len(steps) < 50 and steps == sorted(set(steps), reverse=True)
    assert ladder(5, 5, 5) == [5] and ladder(3, 4, 9) == [4, 3]


def test_fields_of_a_number_of_workers_are_those_of_the_next_smaller():
    sizes = ((2, {"micro_batch": 4}), (8, {"micro_batch": 16}))
    config = with_plain_resources(DIGITS)
    found = [at_size(config, sizes, n).chosen.micro_batch for n in (1, 2, 7, 8, 99)]
    assert found == [0, 4, 4, 16, 16]
    found = [at_size(config, sizes, n, 8).chosen.micro_batch for n in (1, 2, 8)]
    assert found == [8, 4, 8]  # after memory has run out: no larger pass on any number


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", 8), ("200000 100000\n", 2), ("50000 100000", 1), ("", 8)],
)
def test_cpus_are_those_that_a_container_has(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(here.os, "sched_getaffinity", lambda _: set(range(8)))
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert here.cpus_here(quota) == expected
    assert here.cpus_here(tmp_path / "none") == 8


def test_a_trace_is_kept_for_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path))
    made = []

    def count(config, description, sizes):
        made.append(sizes)
        return Traced({n: {phase: n * len(made) for phase in PHASES} for n in sizes})

    monkeypatch.setattr(trace_memory, "trace", count)
    config, description = with_plain_resources(DIGITS), teacher_of(DIGITS)

    def first(own=config, network=description):
        return trace_cache.kept_trace(own, network, [1, 2]).points[1][GENERATOR]

    assert [first(), first()] == [1, 1]
    assert first(replace(config, resources__num_workers=4, training__seed=1)) == 1
    assert first(replace(config, training__precision="bfloat16")) == 2
    assert first(replace(config, resources__activation_checkpointing=True)) == 3
    (kept, *_) = sorted(tmp_path.glob("traces/*"), key=lambda path: path.stat().st_mtime_ns)
    kept.write_text("[")
    assert first() == 4  # a damaged file costs a trace
    monkeypatch.setattr(trace_cache, "code_key", lambda: "another version")
    assert first() == 5
    monkeypatch.setenv("SID_RAY_CACHE", "/proc/nowhere")
    assert first() == 6


def test_margins_are_what_the_docs_say():
    prices = (on_gpus.MARGIN, fit.PASS, fit.AGAIN, fit.AGAIN_FLOAT32)
    assert prices == (0.1, 10, 0.5, 7.5)
    text = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    for words in ("a tenth of the memory", "ten networks", "half a network", "7.5 in float32"):
        assert words in text, words
