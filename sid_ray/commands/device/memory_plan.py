"""The memory that `sid-ray plan` counts against what an iteration takes on this device."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from sid_ray.actors.measures import begin_peak
from sid_ray.commands.device.random_nets import Sized, random_run
from sid_ray.commands.device.rows import (
    FAILED,
    OK,
    WARNING,
    DeviceRow,
    Rig,
    cut_short,
    guarded,
)
from sid_ray.config.distill_config import DistillConfig
from sid_ray.planning.fit import Gpus, Planner
from sid_ray.planning.memory import GIB, Moment
from sid_ray.planning.trace_memory import LiveBytes
from sid_ray.recipes.known_networks import teacher_of

CIFAR, XS, SMALL = Sized("cifar10-uncond-sid"), Sized("img512-xs-sid"), Sized("img512-s-sida")
MEASURED_AT = ((CIFAR, 32), (XS, 8), (SMALL, 16), (XS, 32), (CIFAR, 128))
ON_CPU = ((CIFAR, 8), (CIFAR, 32))
OFF = 0.15  # relative: beyond it the plan fills a GPU too little, or too much
PART_S = 35.0  # that a row takes, about: the plan traces a pass on one core


def verify_memory(rig: Rig) -> Iterator[DeviceRow]:
    """A row a recipe and micro-batch: the plan's tensors, and what the allocator reserved."""
    for sized, micro_batch in ON_CPU if rig.small else MEASURED_AT:
        config = sized.on(rig, micro_batch=micro_batch)
        name = f"{config.recipe}, {micro_batch} images a pass"
        cut = list(cut_short(name, rig, PART_S))
        if cut:
            yield from cut
            continue
        yield from guarded(name, lambda name=name, config=config: planned_and_measured(  # type: ignore[misc]
            name, config, rig))  # fmt: skip


def planned_and_measured(name: str, config: DistillConfig, rig: Rig) -> Iterator[DeviceRow]:
    machine = Gpus(1, rig.memory)
    moment = Planner(teacher_of(config)).peak(config, machine)
    device = rig.first
    measured, reserved = peak_on_gpu(config, device) if not rig.small else peak_on_cpu(config)
    yield memory_row(name, moment, machine.reserve, measured, reserved)


def memory_row(name: str, moment: Moment, reserve: int, measured: int, reserved: int) -> DeviceRow:
    """The plan's fullest moment, ``reserve`` bytes of it for no tensor, beside what was measured:
    the most of tensors, and the most that the allocator held; 0 where nobody knows.
    """
    planned = moment.total - reserve
    ratio = measured / planned
    verdict = OK if abs(ratio - 1) <= OFF else WARNING
    if reserved > moment.total:
        verdict = FAILED  # a GPU that is filled by the plan would overflow
    text = f"{measured / GIB:.3f} GiB measured, {planned / GIB:.3f} planned ({ratio:.2f} times)"
    if reserved:
        text += f"; {reserved / GIB:.3f} GiB reserved of {moment.total / GIB:.3f} with the reserve"
    return DeviceRow(
        name,
        text,
        f"{1 - OFF:g} to {1 + OFF:g} times",
        verdict,
        {
            "planned_bytes": planned,
            "measured_bytes": measured,
            "reserved_bytes": reserved,
            "planned_with_reserve_bytes": moment.total,
            "moment": moment.name,
        },
    )


def peak_on_gpu(config: DistillConfig, device: torch.device) -> tuple[int, int]:
    """(most bytes of tensors, most bytes of the allocator): of the building, and of iterations
    behind the first, which holds what cuDNN's search takes as well.
    """
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run = random_run(config, device)
    found = [peaks(device)]
    run.iterate()
    begin_peak(device)
    for _ in range(2):  # now with Adam's state
        run.iterate()
    torch.cuda.synchronize(device)
    found.append(peaks(device))
    del run
    gc.collect()
    torch.cuda.empty_cache()
    measured, reserved = map(max, zip(*found, strict=True))
    return measured - before, reserved


def peaks(device: torch.device) -> tuple[int, int]:
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


def peak_on_cpu(config: DistillConfig) -> tuple[int, int]:
    """The same of tensors, counted as operators make them; nothing is known of the allocator."""
    gc.collect()
    with LiveBytes() as live:
        run = random_run(config, torch.device("cpu"))
        for _ in range(2):
            run.iterate()
    return live.peak, 0
