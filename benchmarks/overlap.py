"""resources.overlap_comm on two gloo processes: the same weights, and the ratio of seconds.

    python -m benchmarks.overlap [--rounds 20] [--channels 64]

At each ZeRO stage two roles with the same weights take steps on the same samples in turn, one with
overlap and one without; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed.deepspeed_role import DeepSpeedRole, init_deepspeed
from sid_ray.distributed.roles import AdamSettings
from sid_ray.types import Condition

STAGES, PASSES = (1, 2, 3), 2
ADAM = AdamSettings(1e-3, 0.0, 0.999, 1e-8)


def role_of(channels: int, stage: int, overlap: bool) -> DeepSpeedRole:
    torch.manual_seed(0)
    network = EDMDenoiser(
        EDMNetwork(
            img_resolution=8,
            img_channels=3,
            model_channels=channels,
            channel_mult=(1, 2),
            num_blocks=1,
            attn_resolutions=(),
        )
    )
    return DeepSpeedRole(network, ADAM, stage, PASSES, overlap=overlap)


def update(role: DeepSpeedRole, number: int) -> float:
    """Seconds of one update, on samples of this rank's own."""
    began = time.perf_counter()
    for index in range(PASSES):
        seed = (number * PASSES + index) * 2 + torch.distributed.get_rank()
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        level = EDMSchedule().level(torch.ones(2))
        role.backward((role.network(x, level, Condition()).x0 ** 2).sum())
    assert role.update()
    return time.perf_counter() - began


def work(rank: int, port: int, folder: str, rounds: int, channels: int) -> None:
    """One of two processes; rank 0 writes what was found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    init_deepspeed()
    found = {}
    for stage in STAGES:
        roles = {overlap: role_of(channels, stage, overlap) for overlap in (False, True)}
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds):
            for overlap in (False, True) if number % 2 else (True, False):
                seconds[overlap].append(update(roles[overlap], number))
        states = {overlap: role.state().tensors for overlap, role in roles.items()}
        found[stage] = {
            "largest": max(
                float((states[True][k] - states[False][k]).abs().max()) for k in states[False]
            ),
            "seconds": {o: statistics.median(taken[2:]) for o, taken in seconds.items()},
        }
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.destroy_process_group()


def measure(rounds: int, channels: int) -> dict[int, dict[str, Any]]:
    """By stage: ``largest`` difference of weights and moments, ``seconds`` of an update."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="overlap_") as folder:
        torch.multiprocessing.spawn(work, (port, folder, rounds, channels), nprocs=2)
        return torch.load(Path(folder) / "found.pt", weights_only=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--channels", type=int, default=64)
    options = parser.parse_args()
    found = measure(options.rounds, options.channels)
    print("| ZeRO | without, s | with, s | ratio of medians | largest difference of state |")
    print("|---:|---:|---:|---:|---:|")
    for stage, row in found.items():
        off, on = row["seconds"][False], row["seconds"][True]
        print(f"| {stage} | {off:.3f} | {on:.3f} | {on / off:.2f} | {row['largest']:g} |")


if __name__ == "__main__":
    main()
