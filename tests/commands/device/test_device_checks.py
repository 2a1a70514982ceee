"""Each check of a machine by its parts, on the CPU: what is right passes, what is wrong is seen."""

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace as changed

import pytest
import torch
from safetensors.torch import save_file

from sid_ray.checkpoint.manifest import Manifest
from sid_ray.commands.arguments import of_recipe
from sid_ray.commands.benching.search import NotMeasuredError
from sid_ray.commands.device import (
    collectives,
    compiling,
    kernels,
    memory_plan,
    numbers,
    resume,
    snapshots,
    speed,
    steps,
    zero,
)
from sid_ray.commands.device.random_nets import Sized
from sid_ray.commands.device.rows import FAILED, OK, SKIPPED, WARNING, DeviceRow, Rig
from sid_ray.commands.device.short_run import shipped_recipes
from sid_ray.commands.device.vectors import outcome_of, read_cases, relative
from sid_ray.commands.device.zero import nearest_to_bound, sharings
from sid_ray.commands.distill_options import DistillOptions
from sid_ray.objectives.spec import objective_specs
from sid_ray.planning.memory import Moment
from tests.support.tf32 import TF32

CPU, RIG = torch.device("cpu"), Rig("cpu", 2, 4 << 30, 300.0)


# Vectors ------------------------------------------------------------------------------------------


def of_float32(monkeypatch, name: str) -> None:
    """The check looks at one case in one precision."""
    cases, tensors = read_cases()
    found = next(case for case in cases if case.name == name)
    only = changed(found, bounds={"float32": found.bounds["float32"]})
    monkeypatch.setattr(numbers, "read_cases", lambda: ([only], tensors))


@pytest.mark.parametrize("name", ["EDM2 network", "SiD on EDM"])
def test_tf32_and_nothing_less_is_seen_in_the_vectors(name, monkeypatch):
    of_float32(monkeypatch, name)
    assert [row.verdict for row in numbers.verify_numbers(RIG)] == [OK]
    with TF32():
        assert [row.verdict for row in numbers.verify_numbers(RIG)] == [FAILED]


def test_the_vectors_are_what_float64_says_here():
    cases, tensors = read_cases()
    case = next(case for case in cases if case.name == "SiDA on EDM2")
    for name, value in outcome_of(case, CPU, "float32", wide=True).items():
        assert relative(value, tensors[f"{case.name}/{name}"]) < 1e-7, name


def test_every_family_and_objective_that_ships_has_vectors():
    cases = read_cases()[0]
    assert {case.config.objective.name for case in cases} >= {s.name for s in objective_specs()}
    assert len({case.family for case in cases if not case.changes}) == 3


# Steps and sharing --------------------------------------------------------------------------------


def test_a_step_has_the_same_bits_twice_and_every_objective_is_looked_at(monkeypatch):
    monkeypatch.setattr(steps, "GROUPS", 1)
    monkeypatch.setattr(steps, "GROUP", 2)
    assert set(shipped_recipes()) == {spec.name for spec in objective_specs()}
    (row,) = steps.same_bits("digits-sid", RIG)
    assert row.verdict == OK and row.figures["tensors"] > 100


def state(**other) -> dict[str, torch.Tensor]:
    of_one = {"generator w/master": torch.ones(4), "generator w/exp_avg_sq": torch.full((4,), 4.0)}
    return of_one | {"average w/master": torch.ones(4)} | other


@pytest.mark.parametrize(
    ("other", "error", "verdict"),
    [
        ({}, 0.0, OK),
        ({"generator w/exp_avg_sq": torch.full((4,), 4.04)}, 0.005, FAILED),  # |g| by 0.5 %
        ({"generator w/master": torch.full((4,), 1.00001)}, 1e-5, OK),
        ({"average w/master": torch.full((4,), float("nan"))}, float("nan"), FAILED),
    ],
)
def test_states_are_compared_by_kind(other, error, verdict):
    row = nearest_to_bound("stage 1", state(**other), state(), 1.0)
    assert row.verdict == verdict
    assert row.figures["value"] == pytest.approx(error, rel=0.02, nan_ok=True)


def test_one_gpu_and_several_are_shared_out_in_every_way_there_is():
    assert [s.name for s in sharings(1)][-1] == "stage 3, offloaded"
    assert len(sharings(8)) == 9 and sharings(8)[-1].name == "stage 3, teacher too"


def test_a_rank_that_fails_ends_all_of_them_with_its_reason(alone, tmp_path, monkeypatch):
    def run(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(zero, "init_deepspeed", lambda: None)
    monkeypatch.setattr(zero, "shared_run", run)
    save_file({"x": torch.ones(1)}, tmp_path / "plain.safetensors")
    rows: list[DeviceRow] = []
    config = Sized("digits-sid").on(RIG)
    with pytest.raises(RuntimeError, match=r"^stage 0, 2 ranks, none .*; rank 1: CUDA out of"):
        zero.compared_with_plain(config, tmp_path / "plain.safetensors", RIG, 1, CPU, rows.append)
    assert rows == []
    one = changed(RIG, world=1)  # nobody waits
    zero.compared_with_plain(config, tmp_path / "plain.safetensors", one, 0, CPU, rows.append)
    assert [row.verdict for row in rows] == [FAILED] * len(sharings(1))


def test_a_way_to_share_that_hangs_is_told_and_ended(monkeypatch):
    rows: list[DeviceRow] = []
    ended = threading.Event()
    monkeypatch.setattr(zero.os, "_exit", lambda code: ended.set())
    with zero.ended_after(0.05, "stage 2", 0, rows.append):
        assert ended.wait(10.0)
    (row,) = rows
    assert row.verdict == FAILED and row.measured.startswith("no end within 0 s; none behind")
    ended.clear()
    with zero.ended_after(0.05, "stage 2", 0, rows.append):
        pass
    assert not ended.wait(0.2) and len(rows) == 1


# Collectives --------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("collective", collectives.COLLECTIVES, ids=lambda each: each.name)
def test_a_collective_is_right_and_one_that_does_nothing_is_not(alone, collective):
    (row,) = collectives.rows_of_collective(collective, "gloo", 4096, CPU)
    assert row.verdict == OK
    idle = changed(collective, run=lambda given, out: None)
    (row,) = collectives.rows_of_collective(idle, "gloo", 4096, CPU)
    assert row.verdict == FAILED and "1024 numbers are wrong" in row.measured


def test_what_collectives_of_several_ranks_make():
    given = [collectives.given_by(rank, 6, CPU) for rank in range(3)]
    for rank in range(3):
        expected = {
            "all reduce": sum(given),
            "reduce scatter": sum(given)[rank * 2 : rank * 2 + 2],
            "all gather": torch.cat([each[:2] for each in given]),
            "broadcast": given[0],
        }
        for name, value in expected.items():
            found = collectives.made_of_all(name, rank, 3, 6, CPU)
            assert torch.equal(found, value), name


# Memory, snapshot, attention, compile, speed ------------------------------------------------------


def test_the_plan_counts_what_a_run_takes():
    config = Sized("digits-sid").on(RIG, micro_batch=4)
    (row,) = memory_plan.planned_and_measured("x", config, RIG)
    assert row.verdict == OK


@pytest.mark.parametrize(
    ("measured", "reserved", "verdict"),
    [(90, 0, OK), (110, 120, OK), (80, 0, WARNING), (120, 0, WARNING), (100, 151, FAILED)],
)
def test_the_plan_is_held_to_what_is_measured(measured, reserved, verdict):
    moment = Moment("pass", Counter({("generator", "weights"): 100, ("reserve", "other"): 50}))
    row = memory_plan.memory_row("x", moment, 50, measured, reserved)
    assert row.verdict == verdict


def test_the_peak_on_a_gpu_is_of_the_building_and_of_later_iterations(monkeypatch):
    """Bytes: 50 are there, the building takes 60 more, cuDNN's search 900, what follows 20."""
    memory = {"now": 50, "most": 50}

    def take(count):
        memory["most"] = max(memory["most"], memory["now"] + count)

    class Run:
        def __init__(self, config, device):
            take(60)
            self.takes = iter((900, 20, 30))

        def iterate(self):
            take(next(self.takes))

    monkeypatch.setattr(memory_plan, "random_run", Run)
    for name, fake in {
        "empty_cache": lambda: None,
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": lambda device: memory.update(most=memory["now"]),
        "memory_allocated": lambda device: memory["now"],
        "max_memory_allocated": lambda device: memory["most"],
        "max_memory_reserved": lambda device: memory["most"] + 5,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert memory_plan.peak_on_gpu(None, torch.device("cuda", 0)) == (60, 115)


def test_a_snapshot_is_timed():
    waits, whole = snapshots.verify_snapshot(RIG)
    assert waits.figures["bytes"] > 1 << 20 and waits.figures["stall_s"] > 0
    assert whole.figures["whole_s"] >= waits.figures["stall_s"]


def test_attention_is_held_to_float64(monkeypatch):
    rows = list(kernels.verify_attention(RIG))
    assert [row.verdict for row in rows if row.name.startswith("sdpa")] == [OK] * 6
    assert [row.verdict for row in rows if row.name.startswith("xformers")] == [SKIPPED] * 3
    real = kernels.attend
    monkeypatch.setattr(kernels, "attend", lambda q, k, v, backend: real(q * 1.01, k, v, backend))
    wrong = [row.verdict for row in kernels.verify_attention(RIG) if "float32" in row.name]
    assert wrong[:2] == [FAILED] * 2


def test_losses_of_a_compiled_run_are_held_to_the_plain_ones():
    plain = compiling.Losses([{"fake_loss": 2.0, "other": 1.0}], 1.0, 0.2)
    near = compiling.Losses([{"fake_loss": 2.001, "other": 5.0}], 9.0, 0.1)
    row = compiling.row_of_mode("default", near, plain)
    assert row.verdict == OK and "2.00 times as fast" in row.measured and "in 9.0 s" in row.measured
    far = compiling.Losses([{"fake_loss": float("nan")}], 1.0, 0.1)
    assert compiling.row_of_mode("default", far, plain).verdict == FAILED


def test_a_generator_and_its_decoder_are_timed(monkeypatch):
    """By a clock that knows what it was given: beside other work either may be the slower."""

    def seconds_of(function, device):
        made = function()
        return {torch.float32: 0.5, torch.uint8: 4.0}[made.dtype] * len(made)

    monkeypatch.setattr(speed, "ceiling", lambda device, dtype: {"product": 1e9})
    monkeypatch.setattr(speed, "seconds_of", seconds_of)
    (row,) = speed.generated(RIG)
    assert (row.figures["images_per_s"], row.figures["images_per_s_decoded"]) == (2.0, 0.25)


@pytest.mark.parametrize(("late", "verdict"), [(True, SKIPPED), (False, FAILED)])
def test_a_step_that_there_was_no_time_for_is_no_fault(late, verdict, monkeypatch):
    def measure(self, config, what, more):
        raise NotMeasuredError("no iteration ended: give --minutes more", late)

    monkeypatch.setattr(speed.Turns, "measure", measure)
    (row,) = speed.step_measured("x", Sized("digits-sid"), 1, RIG)
    assert row.verdict == verdict and ("--minutes" in row.measured) != late


@pytest.mark.parametrize(("micro_batch", "half"), [(64, 32), (48, 16), (16, 8), (6, 2), (2, 1)])
def test_half_a_micro_batch_is_one_that_groups_go_into(micro_batch, half):
    config = Sized("digits-sid").on(RIG)  # groups of 16
    assert speed.half_of(config, micro_batch) == half


# Kill and resume ----------------------------------------------------------------------------------


def test_the_command_that_is_killed_is_one_that_the_door_takes(tmp_path):
    for device in ("cpu", "cuda"):
        command = resume.resumed_command("cut", tmp_path, Rig(device, 1, 1 << 30, 60.0))
        _, config, _ = of_recipe(DistillOptions, command[command.index("distill") + 1 :], "x")
        assert config.check().resources.deterministic
        assert config.resources.use_gpu == (device == "cuda")
        assert config.training.images >= 6 * config.output.checkpoint_every


class Ended:
    """A run with that newest checkpoint."""

    def __init__(self, images: int, files: dict[str, str]):
        nothing = dict.fromkeys(Manifest.__dataclass_fields__)
        self.found = Manifest(**nothing | {"images_seen": images, "files": files})

    def newest(self):
        return self.found


@pytest.mark.parametrize(
    ("images", "files", "verdict"),
    [(8, {"a": "1", "b": "2"}, OK), (8, {"a": "1", "b": "3"}, FAILED), (8, {"a": "1"}, FAILED),
     (4, {"a": "1", "b": "2"}, FAILED)],
)  # fmt: skip
def test_a_resumed_run_is_compared_by_its_files(images, files, verdict):
    whole, cut = Ended(8, {"a": "1", "b": "2"}), Ended(images, files)
    (row,) = resume.compared(whole, cut, 1.0)
    assert row.verdict == verdict


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_runs_on_a_gpu_is_rehearsed_on_fake_tensors():
    """Minutes on a core: wrong devices, types and calls of each check's GPU side."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.device_rehearsal"], capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == dict.fromkeys(found, "") and len(found) >= 8
