"""How long training waits while the state of a large network is copied for a checkpoint."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sid_ray.checkpoint.copies import Copies
from sid_ray.checkpoint.snapshot import take_snapshot
from sid_ray.commands.device.collectives import synchronised
from sid_ray.commands.device.random_nets import Sized
from sid_ray.commands.device.rows import OK, WARNING, DeviceRow, Rig, not_looked_at
from sid_ray.config.distill_config import DistillConfig
from sid_ray.distributed.fragments import ShardedAverage
from sid_ray.distributed.roles import TorchRole, Trainee
from sid_ray.planning.fit import Planner
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.training.assemble import adam_of, generator_description
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.networks import layout

GIB = 1 << 30
SIZES = tuple(  # the largest first
    map(Sized, ("img512-xl-sid", "img512-l-sid", "img512-m-sid", "img512-s-sid", "img512-xs-sid"))
)
HOST_SHARE, GPU_SHARE = 0.4, 0.7  # of free memory that the state may take
BLOCK = 1 << 30  # bytes of the copy that bandwidth is measured by
SMALL_BLOCK = 16 << 20
# Seconds that the host is held up beyond what copying takes where a GPU copies by itself: it only
# asks for the copies.
STALL_S = 0.5
ROUNDS = 3


@dataclass(frozen=True)
class Taken:
    """Seconds of one snapshot: until training may go on, and until all is in host memory."""

    stall: float
    whole: float


def verify_snapshot(rig: Rig) -> Iterator[DeviceRow]:
    """The first snapshot, which allocates memory, and the next ones, which use it again."""
    device = rig.first
    bandwidth = bandwidth_to_host(device, SMALL_BLOCK if rig.small else BLOCK)
    chosen = largest_state(rig, device)
    if chosen is None:
        yield not_looked_at("snapshot", "the memory that is free holds no state of any network")
        return
    config, description, size = chosen
    taken = snapshots_of(config, description, device)
    expected = size / bandwidth
    first, later = taken[0], min(taken[1:], key=lambda each: each.whole)
    name = f"{config.recipe}'s state, {size / GIB:.2f} GiB"
    # A GPU copies beside the training; a CPU's state is copied while training waits.
    bound = STALL_S if device.type == "cuda" else 3 * expected + STALL_S
    yield DeviceRow(
        f"{name}: training waits",
        f"{later.stall:.3f} s; the first time {first.stall:.2f} s, as memory is made ready",
        f"{bound:.2f} s",
        OK if later.stall <= bound else WARNING,
        {"stall_s": later.stall, "first_stall_s": first.stall, "bytes": size},
    )
    yield DeviceRow(
        f"{name}: all is copied",
        f"after {later.whole:.2f} s; a large copy at {bandwidth / 1e9:.1f} GB/s: {expected:.2f} s",
        f"{2 * expected + STALL_S:.2f} s",
        OK if later.whole <= 2 * expected + STALL_S else WARNING,
        {"whole_s": later.whole, "at_bandwidth_s": expected, "bytes_per_s": bandwidth},
    )


def bandwidth_to_host(device: torch.device, size: int) -> float:
    """Bytes a second of one large copy, to page-locked memory from a GPU."""
    given = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    seconds = []
    for _ in range(1 + ROUNDS):
        synchronised(device)
        began = time.perf_counter()
        target.copy_(given, non_blocking=True)
        synchronised(device)
        seconds.append(time.perf_counter() - began)
    return size / min(seconds[1:])


def largest_state(
    rig: Rig, device: torch.device
) -> tuple[DistillConfig, ModelDescription, int] | None:
    """The largest network whose state fits into what memory is free, and the bytes copied."""
    host = available_memory()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host
    for sized in SIZES:
        config = sized.on(rig)
        description = teacher_of(config)
        size = Planner(description).checkpoint(config)
        if size <= HOST_SHARE * host and size <= GPU_SHARE * free:
            return config, description, size
    return None


def available_memory(path: Path = Path("/proc/meminfo")) -> int:
    """Bytes of host memory that a process may take; 0 where it is not said."""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def snapshots_of(
    config: DistillConfig, description: ModelDescription, device: torch.device
) -> list[Taken]:
    """ROUNDS and one snapshots of two roles and their average; numbers do not matter."""

    def role(name: str) -> TorchRole:
        module = layout(description, "the teacher").to_empty(device=device)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        return TorchRole(module, adam_of(config, name))

    roles = {name: role(name) for name in (FAKE_SCORE, GENERATOR)}
    generator = roles[GENERATOR]
    teacher = torch.nn.Module()
    trainee = Trainee(teacher, roles[FAKE_SCORE], generator, ShardedAverage(generator))
    what, copies, found = generator_description(config, description), Copies.off(device), []
    for _ in range(1 + ROUNDS):
        synchronised(device)
        began = time.perf_counter()
        snapshot = take_snapshot(trainee, roles, what, "{}", copies)
        stall = time.perf_counter() - began
        snapshot.copies.hold()
        snapshot.copies.wait()
        found.append(Taken(stall, time.perf_counter() - began))
        del snapshot
    del roles, trainee, generator
    gc.collect()
    return found
