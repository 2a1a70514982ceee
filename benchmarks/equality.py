"""Every ZeRO stage and world size against one process of plain torch, float32: one table.

    python -m benchmarks.equality [--worlds 1 2 3] [--stages 0 1 2 3]

Five iterations of SiD and SiDA on tiny networks, every group split over two passes, dropout on.
Printed are relative errors, the larger of the two roles: of all tensors of a kind as one vector,
and of the worst tensor. The rows "plain" are plain torch with its groups not split: what float32
and Adam with beta1 = 0 make of another order of summation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from sid_ray import engine
from tests.trajectories import (
    CASES,
    COLUMNS,
    GROUP,
    ITERATIONS,
    errors,
    outcome,
    plain_outcome,
    sharded_trainee,
    spawn,
    train,
)


def measure(rank: int, world_size: int, folder: str, cases: list, stages: list, persist: int):
    """All cases and stages in one start of the processes; rank 0 writes down the errors."""
    engine.PERSISTENT = persist
    rows = []
    for name in cases:
        expected = torch.load(f"{folder}/{name}.pt")
        for stage in stages:
            began = time.monotonic()
            trainee = sharded_trainee(CASES[name], stage, stage, 3 * (stage == 3), world_size)
            train(CASES[name], trainee, rank, world_size, ITERATIONS)
            found = errors(outcome(trainee), expected)
            rows.append((name, world_size, stage, found, time.monotonic() - began))
    if rank == 0:
        torch.save(rows, f"{folder}/rows{world_size}.pt")


def show(name: str, ranks: int, stage: object, found: dict[str, float], seconds: float) -> None:
    numbers = " | ".join(f"{found[column]:.1e}" for column in COLUMNS)
    print(f"| {name} | {ranks} | {stage} | {numbers} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--persistent", type=int, default=0, help="elements; stage 3")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"| run | ranks | stage | {' | '.join(COLUMNS)} | s |")
        print("|---" * (len(COLUMNS) + 4) + "|")
        for name in given.cases:
            expected = plain_outcome(name)
            torch.save(expected, f"{folder}/{name}.pt")
            show(name, 1, "plain", errors(plain_outcome(name, GROUP), expected), 0)
        for world_size in given.worlds:
            spawn(measure, world_size, folder, given.cases, given.stages, given.persistent)
            for row in torch.load(Path(folder) / f"rows{world_size}.pt"):
                show(*row)


if __name__ == "__main__":
    main()
