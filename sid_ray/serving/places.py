"""How many replicas a server may have, and what each of them computes on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from sid_ray.errors import UserError

AUTO = "auto"
RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
SHARES = 10_000  # Ray counts resources in ten-thousandths
GPU_BATCH, CPU_BATCH, MOST_BATCH = 64, 32, 1024
AUTO_PARTS = 4  # of all CPUs, where nobody says how many replicas
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
    node_cpus: Sequence[float],
    models: int,
) -> Place:
    """Where replicas of one of so many models go.

    ``offered`` is what the cluster has, by Ray's names, ``node_cpus`` what each of its nodes has;
    ``device`` is auto, cuda or cpu. A GPU per replica, shared only where there are more models than
    GPUs. CPUs are divided among all replicas that are asked for, with auto among AUTO_PARTS: small
    networks make half as many images again and more by two replicas of a thread than by one of two
    (docs/serve.md), and one client alone is to have more than one thread of many. Raises UserError
    for a GPU that is asked for and not there.
    """
    gpus, cpus = int(offered.get("GPU", 0)), offered.get("CPU", 0.0)
    if device == "cuda" and not gpus:
        raise UserError("--device cuda: Ray has no GPU")
    on_gpu = device != "cpu" and gpus > 0
    if on_gpu:
        share = share_of(gpus, asked.least * models)
        most = asked.most or room_for_one([gpus], share, asked.least, models)
        return Place("cuda", 0.0, share, 0, asked.least, most)
    replicas = asked.most * models or max(models, min(AUTO_PARTS, int(cpus)))
    threads = threads_each(node_cpus, replicas)
    share = float(threads) if threads else share_of(cpus, replicas)
    to_come = max(0.0, cpus - sum(node_cpus))  # of nodes that an autoscaler may bring
    room = [*node_cpus, to_come] if threads else [cpus]
    most = asked.most or room_for_one(room, share, asked.least, models)
    return Place("cpu", share, 0.0, max(1, threads), asked.least, most)


def share_of(resource: float, replicas: int) -> float:
    """One, or a part where there is less than one for each."""
    if resource >= replicas:
        return 1.0
    return max(1, math.floor(SHARES * resource / replicas)) / SHARES


def room_for_one(nodes: Sequence[float], share: float, least: int, models: int) -> int:
    """Replicas that a model may have where the others have their least, each within a node."""
    places = sum(math.floor(resource / share + 1e-6) for resource in nodes)
    return max(least, places - least * (models - 1))


def threads_each(node_cpus: Sequence[float], replicas: int) -> int:
    """The most threads that so many replicas can have, each of them within a node; 0 where there
    is not a CPU for each.
    """
    most = int(max(node_cpus, default=0))
    fit = (n for n in range(most, 0, -1) if sum(cpus // n for cpus in node_cpus) >= replicas)
    return next(fit, 0)


def batch_size(typed: str | int) -> str | int:
    """'auto' or a number of images. Raises UserError."""
    text = str(typed)
    if text == AUTO:
        return AUTO
    if not text.isdecimal() or not 1 <= int(text[:6]) <= MOST_BATCH:
        raise UserError(f"--batch {text!r:.60}: expected auto, or a number from 1 to {MOST_BATCH}")
    return int(text)


def batch_of(typed: int | str, device: str) -> int:
    """Images at once, also where a person gives no number. Raises UserError."""
    found = batch_size(typed)
    if found != AUTO:
        return int(found)
    return GPU_BATCH if device == "cuda" else CPU_BATCH


def teacher_batch(batch: int) -> int:
    return max(1, batch // TEACHER_SHARE)
