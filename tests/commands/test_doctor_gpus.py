"""doctor's look at this machine's GPUs, and the driver's at a worker's: each cause is its line."""

from dataclasses import replace as changed
from types import SimpleNamespace

import pytest
import ray.exceptions
import torch

from sid_ray.actors import trainer
from sid_ray.commands.checks import FAILED, OK, WARNING, Patient
from sid_ray.commands.doctor import check_machine
from sid_ray.config.distill_config import replace
from sid_ray.device import found
from sid_ray.device.found import Seen
from sid_ray.device.nvml import Card, Driver
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe

CARD = Card(0, "NVIDIA H100", 80 << 30, (9, 0), "GPU-1")
OLD = Seen(
    "2.13.0+cu130", "13.0", None, (), Driver(0, "535.104.05", (12, 2), (CARD,)), "535.104.05", None
)
GOOD = changed(OLD, driver=Driver(0, "580.65.06", (13, 0), (CARD,)), module="580.65.06")
ON_GPU = replace(recipe("digits-sid"), resources__use_gpu=True, resources__num_workers=1)


@pytest.fixture
def machine(monkeypatch):
    """What doctor says of a machine: a function of what is seen there, and a config."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def too_old(device: int = 0) -> str:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020)")

    # As torch answers there: it counts by NVML, and fails when CUDA starts.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", too_old)

    def look(seen: Seen, config=None):
        monkeypatch.setattr(found, "look_around", lambda: seen)
        return [(a.state, a.text) for a in check_machine(Patient(config, "runs"))]

    return look


def test_an_old_driver_is_a_line_and_no_traceback(machine):
    (state, shown), (failed, line) = machine(OLD, ON_GPU)
    assert state == OK and shown.endswith("no GPU")
    assert failed == FAILED and "535.104.05 runs CUDA up to 12.2" in line and "driver 580" in line


def test_gpus_that_torch_cannot_use_are_a_warning_where_none_is_asked_for(machine):
    cpu_build = changed(GOOD, torch="2.13.0+cpu", cuda=None)
    for config in (None, replace(recipe("digits-sid"), resources__use_gpu=False)):
        (_, (state, line)) = machine(cpu_build, config)[:2]
        assert state == WARNING and "torch 2.13.0+cpu is a build without CUDA" in line
    nothing = changed(cpu_build, driver=Driver(-1), module="")
    assert [state for state, _ in machine(nothing)] == [OK]


def test_gpus_are_shown_without_starting_cuda(machine):
    ((state, shown),) = machine(GOOD, ON_GPU)
    assert state == OK and "1 GPUs (NVIDIA H100)" in shown
    assert not torch.cuda.is_initialized()


def test_what_a_look_at_a_workers_gpu_finds_is_the_users_line(monkeypatch, tmp_path):
    """Not "Ray ended: RayTaskError ..."."""

    def no_gpu(*arguments):
        cause = UserError("NVIDIA's driver 535.104.05 runs CUDA up to 12.2")
        raise ray.exceptions.RayTaskError("look_at_gpu", "a traceback\nof many lines", cause)

    monkeypatch.setattr(trainer, "start_ray", no_gpu)
    monkeypatch.setattr(trainer, "newest_listed", lambda store: None)
    monkeypatch.setattr(trainer, "began_at", lambda began: 0)
    monkeypatch.setattr(trainer.ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    show = SimpleNamespace(update=lambda phase, metrics, events: None)
    run, record = SimpleNamespace(store=None), SimpleNamespace(began_from="")
    with pytest.raises(UserError) as error:
        trainer.run_training(ON_GPU, None, run, record, show)
    assert str(error.value) == "NVIDIA's driver 535.104.05 runs CUDA up to 12.2"
