"""`sid-ray plan` and check_fits: what fits, what is recommended, and the nearest that fits."""

from dataclasses import replace

import pytest

from sid_ray.cli import main
from sid_ray.commands.arguments import with_flags
from sid_ray.commands.plan import WIDTH
from sid_ray.commands.plan_options import PlanOptions
from sid_ray.config.distill_config import replace as changed
from sid_ray.errors import UserError
from sid_ray.planning import fit
from sid_ray.planning.fit import (
    Gpus,
    Planner,
    micro_batches,
    stage_variants,
)
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR, GIB, Network
from sid_ray.planning.network_sizes import sizes_of
from sid_ray.planning.trace_memory import Traced, trace
from sid_ray.recipes.known_networks import known_network, teacher_of
from sid_ray.recipes.registry import RECIPES, recipe

DIGITS = recipe("digits-sid")
TEACHER = teacher_of(DIGITS)


def saving(**values):
    return replace(DIGITS, resources=replace(DIGITS.resources, micro_batch=32, **values))


def straight(config, description, sizes):
    """A trace that takes no time: so much an image, half of it with checkpointing."""
    part = 2 if config.chosen.activation_checkpointing else 1
    each = {FAKE_SCORE: 600_000 // part, GENERATOR: 1_700_000 // part}
    return Traced({n: {phase: n * size for phase, size in each.items()} for n in sizes})


@pytest.fixture
def planner(monkeypatch):
    monkeypatch.setattr(fit, "kept_trace", straight)
    return Planner(TEACHER)


def run(capsys, *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *args])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_every_published_teacher_is_known():
    for entry in RECIPES.values():
        source = entry.config.teacher.source
        assert source.startswith("builtin:") or known_network(source), source
    assert known_network("https://host/other.pkl") is None
    with pytest.raises(UserError, match="not known by its address"):
        teacher_of(changed(DIGITS, teacher__source="https://host/other.pkl"))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar10-uncond-sid", 55_733_891),
        ("ffhq64-sid", 61_805_571),
        ("img64-sid", 295_899_267),
        ("img512-s-sid", 280_212_837),
        ("sd21-base-lsg-kappa2", 865_910_724),
    ],
)
def test_known_networks_have_the_published_counts(name, count):
    if name.startswith("sd"):
        pytest.importorskip("diffusers")
    assert sizes_of(teacher_of(recipe(name)), 10_000).parameters == count


def test_micro_batches_are_what_a_rank_can_use():
    config = changed(DIGITS, training__batch_size=96, training__group_size=8)
    assert micro_batches(config, 2) == [1, 2, 4, 8, 16, 24, 48]  # 6 groups: 32 is as many as 24
    assert micro_batches(config, 12) == [1, 2, 4, 8]
    with pytest.raises(UserError, match="13 workers for 12 groups"):
        micro_batches(config, 13)


def test_the_stage_that_sends_least_costs_least_where_passes_are_as_many(planner):
    rows = planner.rows(saving(), Gpus.of(2, 8))
    assert [row.stage for row in rows] == list(stage_variants(saving(), 2))
    assert all(row.fits and row.largest == 32 for row in rows)
    order = sorted(rows, key=lambda row: (row.cost, row.peak.total))
    assert [row.stage for row in order] == ["0", "1", "2", "3", "3, teacher"]


def test_settings_that_save_memory_are_counted(planner):
    planner._networks[None] = Network(10**9)
    machine = Gpus(2, 8 * GIB, 0)
    plain = planner.peak(saving(), machine)
    offloaded = planner.peak(saving(offload_optimizer=True), machine)
    assert plain.of_kind("moments") > offloaded.of_kind("moments") == 0
    again = planner.activations(saving(activation_checkpointing=True), 32)
    assert all(again[phase] < planner.activations(saving(), 32)[phase] for phase in again)


def test_a_refusal_names_what_fits(capsys, planner):
    named = ["--resources.micro-batch", "32", "--resources.no-activation-checkpointing"]
    named += ["--resources.zero-stage", "0"]
    args = ["digits-sid", "--gpus", "2", "--gpu-memory", "0.06", "--reserve", "0"]
    code, _, err = run(capsys, *args, *named)
    assert (code, err.count("\n")) == (2, 1)
    names = "--resources.zero-stage, --resources.micro-batch, --resources.activation-checkpointing"
    assert f"What fits: {names} auto; or " in err
    assert run(capsys, *args)[0] == 0  # it does


def test_checkpointed_blocks_keep_less():
    plain, again = (
        trace(own, TEACHER, [4]).at(4) for own in (saving(), saving(activation_checkpointing=True))
    )
    for phase in (FAKE_SCORE, GENERATOR):
        assert 0.1 < again[phase] / plain[phase] < 0.6


def test_the_command_shows_stages_and_what_to_take(capsys, planner):
    code, out, err = run(capsys, "digits-sid", "--gpus", "2", "--gpu-memory=8")
    assert (code, err) == (0, "")
    for words in ("0 *", "3, teacher", "fake score", "checkpoint: 13.4 MiB", "assumed"):
        assert words in out, words
    assert "auto: 2 workers, a GPU of 8 GiB each, ZeRO-0 (" in out
    assert max(map(len, out.splitlines())) <= WIDTH


def test_the_command_refuses_what_cannot_fit(capsys, planner):
    code, out, err = run(capsys, "digits-sid", "--gpus", "2", "--gpu-memory", "1")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "does not fit on 2 GPUs of 1.0 GiB: the least is 2." in err
    assert err.endswith("What fits: 2 GPUs of 3.0 GiB\n")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nope"], "no recipe 'nope'"),
        (["digits-sid", "--gpus", "-1"], "--gpus is -1; it must be at least 0"),
        (["digits-sid", "--gpus", "1.5"], "--gpus '1.5': expected a whole number"),
        (["digits-sid", "--gpu-memory"], "--gpu-memory without a value"),
        (["digits-sid", "--gpu-memroy", "8"], "Did you mean --gpu-memory"),
        (["digits-sid", "--gpus", "5", "--workers", "5"], "5 workers for 4 groups"),
        (["digits-sid", "--gpus", "4", "--nodes", "3"], "expected as many on each"),
        (["digits-sid", "--resources.no-use-gpu"], "counts GPUs' memory"),
        (["digits-sid", "--training.bach-size", "3"], "training.batch_size"),
        (["digits-sid", "--teacher.source", "/nowhere"], "no network at /nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(capsys, args, words):
    code, out, err = run(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_own_flags_are_taken_out():
    args = ["digits-sid", "--gpus", "8", "--seed", "1", "--disk-rate=2.5", "--reserve", "0"]
    given, rest = with_flags(PlanOptions, args, "sid-ray plan")
    assert (given.gpus, given.disk_rate, given.reserve) == (8, 2.5, 0)
    assert rest == ["--seed", "1"]


def test_one_gpu_has_one_way_and_no_stage(capsys, planner):
    machine = Gpus.of(1, 8)
    row, *more = planner.rows(saving(zero_stage=3, teacher_zero_stage=3), machine)
    assert more == [] and row.stage == "none" and row.fits
    assert row.peak.of_kind("masters") == row.peak.of_kind("buckets") == row.sent == 0
    assert row.peak.of_kind("moments") == 2 * row.peak.of_role("teacher")["weights"]  # beta1 is 0
    code, out, _ = run(capsys, "digits-sid", "--gpus", "1", "--gpu-memory", "8")
    assert code == 0
    assert "none *" in out and "nobody to share with" in out
    assert "auto: 1 worker on a GPU of 8 GiB, micro-batch 64 (1 pass, " in out
    assert "ZeRO-" not in out


def test_one_gpu_that_offloads_has_stages(planner):
    rows = planner.rows(saving(offload_optimizer=True), Gpus.of(1, 8))
    assert [row.stage for row in rows] == ["1", "2", "3"]
    assert all(row.host > 0 for row in rows)
