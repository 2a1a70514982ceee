"""Why no GPU can be used: each cause has its line. Driver, build and environment are made up."""

import ctypes
from dataclasses import replace

import pytest
import torch

from sid_ray.device import found
from sid_ray.device.found import Seen, gpus_here, kernel_module, no_gpu_reason, require_gpu
from sid_ray.device.nvml import NO_LIBRARY, Card, Driver, ask_driver
from sid_ray.errors import UserError

GIB = 1 << 30
CARDS = tuple(Card(i, "NVIDIA H100", 80 * GIB, (9, 0), f"GPU-{i}aaa") for i in range(2))
DRIVER = Driver(0, "580.65.06", (13, 0), CARDS)
GOOD = Seen(
    "2.13.0+cu130", "13.0", None, ("sm_75", "sm_90", "compute_120"), DRIVER, "580.65.06", None
)


def on(monkeypatch, seen: Seen) -> str:
    monkeypatch.setattr(found, "look_around", lambda: seen)
    return no_gpu_reason()


def test_gpus_of_a_good_machine(monkeypatch):
    assert on(monkeypatch, GOOD) == ""
    require_gpu()
    assert [(g.index, g.name, g.memory, g.capability) for g in gpus_here()] == [
        (0, "NVIDIA H100", 80 * GIB, (9, 0)),
        (1, "NVIDIA H100", 80 * GIB, (9, 0)),
    ]


OLD = replace(DRIVER, version="535.104.05", cuda=(12, 2))
V100 = replace(DRIVER, cards=(Card(0, "Tesla V100", 16 * GIB, (7, 0), "GPU-v"),))
TROUBLES = {
    "a build without CUDA": (
        replace(GOOD, torch="2.13.0+cpu", cuda=None, architectures=()),
        ("torch 2.13.0+cpu is a build without CUDA", "2 GPUs (NVIDIA H100)", "pip install"),
    ),
    "no driver": (
        replace(GOOD, driver=Driver(NO_LIBRARY), module=""),
        ("no NVIDIA driver", "driver 580 or newer", "CPUs"),
    ),
    "an old driver": (
        replace(GOOD, driver=OLD),
        (
            "535.104.05 runs CUDA up to 12.2",
            "built for 13.0",
            "driver 580",
            "torch==2.13.0",
            "/cu126",
        ),
    ),
    "a container without GPUs": (
        replace(GOOD, driver=Driver(NO_LIBRARY)),
        ("580.65.06", "--gpus all"),
    ),
    "after a driver's update": (
        replace(GOOD, driver=Driver(18)),
        ("does not answer", "reboot"),
    ),
    "hidden": (
        replace(GOOD, visible=""),
        ("CUDA_VISIBLE_DEVICES='' hides 2 GPUs", "unset it"),
    ),
    "hidden by a number that is not there": (
        replace(GOOD, visible="7"),
        ("CUDA_VISIBLE_DEVICES='7' hides",),
    ),
    "an old GPU": (
        replace(GOOD, driver=V100),
        ("no kernels for Tesla V100 (compute capability 7.0", "CUDA_VISIBLE_DEVICES", "/cu126"),
    ),
    "MIG without an instance": (
        replace(GOOD, driver=replace(DRIVER, cards=(), undivided=(0,))),
        ("MIG is on and GPU 0 has no instance", "nvidia-smi mig"),
    ),
}


@pytest.mark.parametrize("cause", TROUBLES)
def test_each_cause_has_its_line(monkeypatch, cause):
    seen, words = TROUBLES[cause]
    said = on(monkeypatch, seen)
    assert all(word in said for word in words), said
    assert "\n" not in said
    assert gpus_here() == []
    with pytest.raises(UserError):
        require_gpu()


def test_causes_are_told_apart(monkeypatch):
    lines = {on(monkeypatch, seen) for seen, _ in TROUBLES.values()}
    assert len(lines) == len(TROUBLES)


def test_older_drivers_run_later_builds_of_their_own_cuda(monkeypatch):
    assert on(monkeypatch, replace(GOOD, torch="2.13.0+cu126", cuda="12.6", driver=OLD)) == ""


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("0,9,1", [0]), ("0,0", []), ("GPU-1a", [1])],
)
def test_visible_devices_as_cuda_reads_them(visible, indices):
    assert [card.index for card in found.visible_cards(replace(GOOD, visible=visible))] == indices


def test_of_mig_instances_a_process_sees_one():
    parts = tuple(Card(0, "1g.10gb", GIB, (9, 0), f"MIG-{i}", "GPU-0aaa") for i in range(3))
    seen = replace(GOOD, driver=replace(DRIVER, cards=parts))
    assert found.visible_cards(seen) == [parts[0]]
    assert found.visible_cards(replace(seen, visible="MIG-2")) == [parts[2]]


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_80", (8, 9), True),
        ("sm_90", (8, 9), False),
        ("sm_80", (9, 0), False),
        ("compute_80", (9, 0), True),
        ("sm_90a", (9, 0), True),
        ("sm_120", (12, 1), True),
    ],
)
def test_which_code_runs_on_which_gpu(architecture, capability, runs):
    assert found.runs_on(architecture, capability) is runs


def test_version_of_the_kernel_module(tmp_path):
    file = tmp_path / "version"
    for text in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2025\nGCC\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n",
    ):
        file.write_text(text)
        assert kernel_module(file) == "580.65.06"
    assert kernel_module(tmp_path / "none") == ""


def test_here_there_is_one_line_and_cuda_is_not_started():
    """Whatever this machine has: the answer starts no CUDA in the process that asks."""
    said, gpus = no_gpu_reason(), gpus_here()
    assert bool(said) is (not gpus)
    assert "\n" not in said
    assert not torch.cuda.is_initialized()


class FakeNvml:
    """libnvidia-ml with one whole GPU, one in two MIG instances and one that is another's."""

    def __init__(self, init: int = 0):
        self.init, self.open = init, False

    def nvmlInit_v2(self):  # noqa: N802
        self.open = self.init == 0
        return self.init

    def nvmlShutdown(self):  # noqa: N802
        self.open = False

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *given: self.answer(name, *given)

    def answer(self, name, *given):
        *inputs, out = given
        handle = inputs[0].value if inputs and hasattr(inputs[0], "value") else None
        texts = {
            "nvmlSystemGetDriverVersion": "580.65.06",
            "nvmlDeviceGetName": "H100 MIG 1g" if (handle or 0) >= 100 else "H100",
            "nvmlDeviceGetUUID": f"MIG-{handle}" if (handle or 0) >= 100 else f"GPU-{handle}",
        }
        if name in texts:
            given[-2].value = texts[name].encode()
            return 0
        if name == "nvmlDeviceGetHandleByIndex_v2" and inputs[0] == 2:
            return 4
        if name == "nvmlDeviceGetMigMode":
            given[1]._obj.value = int(handle == 11)
            return 0
        if name == "nvmlDeviceGetMigDeviceHandleByIndex":
            if inputs[1] > 1:
                return 6
            out._obj.value = 100 + inputs[1]
            return 0
        if name == "nvmlDeviceGetMemoryInfo":
            out._obj.total = 10 * GIB if handle >= 100 else 80 * GIB
            return 0
        if name == "nvmlDeviceGetCudaComputeCapability":
            given[1]._obj.value, given[2]._obj.value = 9, 0
            return 0
        numbers = {
            "nvmlSystemGetCudaDriverVersion_v2": 13020,
            "nvmlDeviceGetCount_v2": 3,
            "nvmlDeviceGetMaxMigDeviceCount": 7,
            "nvmlDeviceGetHandleByIndex_v2": 10 + inputs[0] if inputs and handle is None else 0,
        }
        out._obj.value = numbers[name]
        return 0


def test_nvml_is_read():
    nvml = FakeNvml()
    driver = ask_driver(lambda: nvml)
    assert (driver.code, driver.version, driver.cuda) == (0, "580.65.06", (13, 2))
    assert [(b.index, b.name, b.memory, b.uuid, b.parent) for b in driver.cards] == [
        (0, "H100", 80 * GIB, "GPU-10", ""),
        (1, "H100 MIG 1g", 10 * GIB, "MIG-100", "GPU-11"),
        (1, "H100 MIG 1g", 10 * GIB, "MIG-101", "GPU-11"),
    ]
    assert not nvml.open


def test_nvml_that_fails_says_why():
    assert ask_driver(lambda: FakeNvml(init=9)) == Driver(9)

    def missing() -> ctypes.CDLL:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    assert ask_driver(missing) == Driver(NO_LIBRARY)
