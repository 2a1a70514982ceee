"""How many replicas a server may have, and what each of them computes on."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from sid_ray.errors import UserError

AUTO = "auto"
RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
SHARES = 10_000  # Ray counts resources in ten-thousandths
GPU_BATCH, CPU_BATCH = 64, 32
TEACHER_SHARE = 8  # a teacher's batch is smaller: nobody is to wait behind 64 times 50 evaluations


class ReplicaRange(NamedTuple):
    """Of one model; ``most`` is 0 for as many as there is room for."""

    least: int
    most: int

    @classmethod
    def of(cls, typed: str) -> ReplicaRange:
        """'auto', 'N' or 'MIN-MAX'. Raises UserError."""
        if typed == AUTO:
            return cls(1, 0)
        match = RANGE.fullmatch(typed)
        least = int(match[1]) if match else 0
        most = int(match[2] or match[1]) if match else 0
        if not 1 <= least <= most:
            raise UserError(
                f"--replicas {typed!r:.60}: expected auto, a number from 1, or a range like 1-4"
            )
        return cls(least, most)


class Place(NamedTuple):
    """What a replica gets, and how many of a model there are.

    ``threads``: of torch on CPUs.
    """

    device: Literal["cuda", "cpu"]
    cpus: float
    gpus: float
    threads: int
    least: int
    most: int


def replica_place(
    asked: ReplicaRange,
    device: str,
    offered: Mapping[str, float],
    models: int,
) -> Place:
    """Where replicas of one of so many models go.

    ``offered`` is what the cluster has, by Ray's names; ``device`` is auto, cuda or cpu. A GPU per
    replica, shared only where there are more models than GPUs; else a CPU each. Raises UserError
    for a GPU that is asked for and not there.
    """
    gpus, cpus = int(offered.get("GPU", 0)), offered.get("CPU", 0.0)
    if device == "cuda" and not gpus:
        raise UserError("--device cuda: Ray has no GPU")
    on_gpu = device != "cpu" and gpus > 0
    least = asked.least
    resource = gpus if on_gpu else cpus
    share = 1.0
    if resource < least * models:
        share = max(1, math.floor(SHARES * resource / (least * models))) / SHARES
    room = max(least, math.floor(resource / share + 1e-6))
    most = asked.most or max(least, room)
    if on_gpu:
        return Place("cuda", 0.0, share, 0, least, most)
    return Place("cpu", share, 0.0, threads_each(cpus, most), least, most)


def threads_each(cpus: float, most: int) -> int:
    """Of torch per replica, so that all of them together have a thread per CPU."""
    return max(1, min(int(cpus), os.cpu_count() or 1) // most)


def batch_of(typed: int | str, device: str) -> int:
    """Images at once where a person gives no number."""
    if typed != AUTO:
        return int(typed)
    return GPU_BATCH if device == "cuda" else CPU_BATCH


def teacher_batch(batch: int) -> int:
    return max(1, batch // TEACHER_SHARE)
