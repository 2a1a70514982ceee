"""Collectives over all GPUs: right results, and how many bytes a second their links carry.

Bus bandwidth as nccl-tests count it, so that figures can be compared: bytes of the whole buffer
over seconds, times what each link carries of it (all-reduce 2 (n-1)/n, the others (n-1)/n or 1).

    n   ranks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sid_ray.commands.device.ranks import Tell, rows_of_ranks
from sid_ray.commands.device.rows import FAILED, OK, WARNING, DeviceRow, Rig, guarded

BYTES = {"nccl": 256 << 20, "gloo": 32 << 20}
SMALL_BYTES = 1 << 20  # where a CPU stands for GPUs
TIMES, WARM_UP = 5, 2
SLOW = 5.0  # GB/s of NCCL between two GPUs: below what a PCIe 3 slot carries


@dataclass(frozen=True)
class Collective:
    """One kind. ``run`` of (input, output) in place, ``expected`` of (rank, world) -> output."""

    name: str
    share: Callable[[int], float]  # of the buffer's bytes that a link carries
    run: Callable[[Tensor, Tensor], object]


def reduce_all(given: Tensor, out: Tensor) -> None:
    out.copy_(given)
    dist.all_reduce(out)


def scatter_sums(given: Tensor, out: Tensor) -> None:
    dist.reduce_scatter_tensor(out[: len(out) // dist.get_world_size()], given)


def gather_parts(given: Tensor, out: Tensor) -> None:
    dist.all_gather_into_tensor(out, given[: len(given) // dist.get_world_size()])


def broadcast(given: Tensor, out: Tensor) -> None:
    if dist.get_rank() == 0:
        out.copy_(given)
    dist.broadcast(out, 0)


COLLECTIVES = (
    Collective("all reduce", lambda n: 2 * (n - 1) / n, reduce_all),
    Collective("reduce scatter", lambda n: (n - 1) / n, scatter_sums),
    Collective("all gather", lambda n: (n - 1) / n, gather_parts),
    Collective("broadcast", lambda n: 1.0, broadcast),
)


def verify_collectives(rig: Rig) -> Iterator[DeviceRow]:
    """NCCL's on GPUs, and gloo's beside, which carries what ranks tell each other."""
    for backend in ("nccl", "gloo") if rig.device == "cuda" else ("gloo",):
        rows = lambda backend=backend: rows_of_ranks(WORK[backend], rig, backend)  # noqa: E731
        yield from guarded(f"{backend}, {rig.world} ranks", rows)


def over_nccl(rig: Rig, rank: int, device: torch.device, tell: Tell) -> None:
    measure_all("nccl", rig, device, tell)


def over_gloo_group(rig: Rig, rank: int, device: torch.device, tell: Tell) -> None:
    """On host memory, as it is used."""
    measure_all("gloo", rig, torch.device("cpu"), tell)


WORK = {"nccl": over_nccl, "gloo": over_gloo_group}


def measure_all(backend: str, rig: Rig, device: torch.device, tell: Tell) -> None:
    size = SMALL_BYTES if rig.small else BYTES[backend]
    for collective in COLLECTIVES:
        for row in rows_of_collective(collective, backend, size, device):
            tell(row)


def given_by(rank: int, count: int, device: torch.device) -> Tensor:
    """What a rank gives: whole numbers, of which float32 makes exact sums."""
    return torch.arange(count, device=device).remainder(1024).float() + rank


def made_of_all(name: str, rank: int, world: int, count: int, device: torch.device) -> Tensor:
    """What a collective makes of every rank's ``given_by``: all, or this rank's part."""
    first = given_by(0, count, device)
    part = count // world
    if name == "broadcast":
        return first
    if name == "all gather":
        return torch.cat([first[:part] + other for other in range(world)])
    whole = world * first + sum(range(world))
    return whole if name == "all reduce" else whole[rank * part :][:part]


def rows_of_collective(
    collective: Collective, backend: str, size: int, device: torch.device
) -> Iterator[DeviceRow]:
    """One row: whether every rank has the right numbers, and the bus bandwidth."""
    rank, world = dist.get_rank(), dist.get_world_size()
    count = size // 4 // world * world
    given, out = given_by(rank, count, device), torch.empty(count, device=device)
    seconds = []
    for _ in range(WARM_UP + TIMES):
        out.fill_(-1.0)
        synchronised(device)
        dist.barrier()
        began = time.perf_counter()
        collective.run(given, out)
        synchronised(device)
        seconds.append(time.perf_counter() - began)
    expected = made_of_all(collective.name, rank, world, count, device)
    wrong = torch.tensor(float((out[: len(expected)] != expected).sum()), device=device)
    dist.all_reduce(wrong)
    slowest = torch.tensor(seconds[WARM_UP:], device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)  # of the ranks, each time
    best = float(slowest.min())
    bandwidth = count * 4 / best * collective.share(world) / 1e9
    figures = {"ranks": world, "bytes": count * 4, "seconds": best, "bus_gb_per_s": bandwidth}
    name = f"{backend} {collective.name}, {world} rank{'s'[: world != 1]}, {count * 4 >> 20} MiB"
    if wrong:
        yield DeviceRow(name, f"{int(wrong)} numbers are wrong", "none", FAILED, figures)
    elif world == 1:
        yield DeviceRow(name, f"right; {best * 1e3:.2f} ms, over no link", "right", OK, figures)
    else:
        slow = backend == "nccl" and bandwidth < SLOW
        yield DeviceRow(
            name,
            f"right; {bandwidth:.1f} GB/s on the bus, {best * 1e3:.2f} ms",
            f"right; {SLOW:g} GB/s" if backend == "nccl" else "right",
            WARNING if slow else OK,
            figures,
        )


def synchronised(device: torch.device) -> None:
    """Returns when a GPU has done what it was given; a CPU has already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
