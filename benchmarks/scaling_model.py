"""Seconds of one iteration on P workers, as arithmetic. No torch, nothing measured in here.

    iteration = passes + communication not hidden behind them + update

    passes         n (p_fake + p_generator) max(1, P / C),   n = passes a rank of the group plan.
                   A rank that runs short of groups repeats some with weight zero: every rank
                   computes as long as the one with the most groups.
    update         (adam / S + normalise + average / P) max(1, P / C),   S = 1 at stage 0, else P.
                   Stage 0 steps every parameter on every rank; forced normalisation writes whole
                   working weights on every rank at every stage; the average is shared out always.
    communication  the sum over all collectives of what one takes on a link, one after the other:
                   overlap_comm is off. ``overlap`` hides a share of it behind passes.

Symbols
    P, C   workers, cores that they share (a GPU each: C = P)
    N      parameters of a network
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sid_ray.groups import GroupPlan
from sid_ray.planning.memory import FLAT, WORD

REDUCE, GATHER, SCATTER = "all_reduce", "all_gather", "reduce_scatter"
# A ring's traffic a rank, of bytes (P - 1) / P: an all-reduce is a reduce-scatter and a gathering.
ROUNDS = {REDUCE: 2, GATHER: 1, SCATTER: 1}
# Networks gathered in one pass of each phase at stage 3. Fake score: its forward and backward
# passes, and the generator evaluated. Generator: its two, and the fake score's two, through which
# the gradient goes to the image.
GATHERED_A_PASS = 3 + 4
TEACHER_A_PASS = 2


class Collective(NamedTuple):
    """``times`` collectives of so many elements each (the whole, not a rank's part)."""

    kind: str
    elements: int
    times: int


@dataclass(frozen=True)
class Sizes:
    """A network's tensors: elements of those that stage 3 shares out, and of the small others.

    ``constrained`` says whether its family has a rule on weights (EDM2's forced normalisation),
    for which stage 3 gathers every weight once an update.
    """

    large: tuple[int, ...]
    small: tuple[int, ...] = ()
    constrained: bool = False

    @property
    def parameters(self) -> int:
        return sum(self.large) + sum(self.small)


@dataclass(frozen=True)
class Stages:
    """ZeRO stage of the trained roles, whether the teacher is shared out, elements of a bucket."""

    trained: int
    teacher: int = 0
    bucket: int = 50_000_000


def pieces(kind: str, elements: int, bucket: int, times: int) -> list[Collective]:
    """A collective of everything, bucket by bucket."""
    count = math.ceil(elements / bucket)
    return [Collective(kind, math.ceil(elements / count), times * count)]


def collectives(stages: Stages, sizes: Sizes, passes: int) -> list[Collective]:
    """Those of one iteration of two roles, as DeepSpeed 0.19.8 issues them with our settings.

    Stages 1 and 2 reduce by all-reduce (use_multi_rank_bucket_allreduce), of which each rank keeps
    its part: twice what a reduce-scatter would send. Stage 0 does so in pieces of FLAT
    elements, 1 in the last pass, 2 in every pass. Those of a few numbers (norms) are left out.
    """
    count, bucket = sizes.parameters, stages.bucket
    if stages.trained == 0:
        found = pieces(REDUCE, count, FLAT, 2)
    elif stages.trained < 3:
        reductions = 2 * (passes if stages.trained == 2 else 1)
        found = pieces(REDUCE, count, bucket, reductions) + pieces(GATHER, count, bucket, 2)
    else:
        found = pieces(SCATTER, count, bucket, 2 * passes)
        gathered = GATHERED_A_PASS * passes + (2 if sizes.constrained else 0)
        found += [Collective(GATHER, size, gathered) for size in sizes.large]
    if stages.teacher == 3:
        found += [Collective(GATHER, size, TEACHER_A_PASS * passes) for size in sizes.large]
    return found


def sent_bytes(found: Sequence[Collective], workers: int) -> int:
    """What a rank sends in rings."""
    elements = sum(ROUNDS[kind] * size * times for kind, size, times in found)
    return WORD * elements * (workers - 1) // workers


class Link(Protocol):
    """What a collective takes."""

    def seconds(self, kind: str, elements: int, workers: int) -> float: ...


@dataclass(frozen=True)
class MeasuredLink:
    """Seconds of collectives by themselves: workers -> kind -> (elements, seconds), ascending.

    Between two sizes a straight line, below the first the first, above the last in proportion.
    """

    points: Mapping[int, Mapping[str, Sequence[tuple[int, float]]]]

    def seconds(self, kind: str, elements: int, workers: int) -> float:
        points = self.points[workers][kind]
        index = bisect_left([size for size, _ in points], elements)
        if index == 0:
            return points[0][1]
        if index == len(points):
            return points[-1][1] * elements / points[-1][0]
        (low, before), (high, after) = points[index - 1 : index + 1]
        return before + (after - before) * (elements - low) / (high - low)


@dataclass(frozen=True)
class StatedLink:
    """Rings over nodes of ``node`` GPUs, from stated bandwidths in bytes a second and direction.

    ``within`` a node is a GPU's; ``between`` nodes is a whole node's, over all its adapters: rings
    go through a node's GPUs one after the other and leave it once each, so that all rings together
    carry the same bytes over a GPU's link and over a node's adapters, and the slower of the two
    decides. ``share`` of the bandwidth is reached. A ring's step waits ``hop_within`` or
    ``hop_between`` seconds, as NCCL's own tuning assumes for rings of large messages (Simple).
    """

    name: str
    within: float
    between: float
    node: int = 8
    share: float = 0.8
    hop_within: float = 3.4e-6
    hop_between: float = 14e-6

    def seconds(self, kind: str, elements: int, workers: int) -> float:
        nodes = math.ceil(workers / self.node)
        slowest = self.within if nodes == 1 else min(self.within, self.between)
        waits = (nodes - 1) * self.hop_between + (workers - nodes) * self.hop_within
        moved = WORD * elements * (workers - 1) / workers
        return ROUNDS[kind] * (moved / (slowest * self.share) + waits)


@dataclass(frozen=True)
class Work:
    """Seconds on one worker that has a core to itself.

    ``fake_pass`` and ``generator_pass`` of one micro-step; ``adam``, ``normalise`` and ``average``
    of one iteration, whole networks, both roles together.
    """

    fake_pass: float
    generator_pass: float
    adam: float
    normalise: float
    average: float


@dataclass(frozen=True)
class Seconds:
    """One iteration; ``hidden`` is communication behind passes."""

    passes: float
    update: float
    communication: float
    hidden: float = 0.0

    @property
    def total(self) -> float:
        return self.passes + self.update + self.communication - self.hidden


def iteration(
    work: Work,
    plan: GroupPlan,
    stages: Stages,
    sizes: Sizes,
    link: Link,
    cores: float = math.inf,
    overlap: float = 0.0,
) -> Seconds:
    """Seconds of one iteration on ``plan.world_size`` workers, which share ``cores``.

    GroupPlan raises UserError for more workers than groups.
    """
    workers, passes = plan.world_size, plan.passes_a_rank
    slower = max(1.0, workers / cores)
    computing = passes * (work.fake_pass + work.generator_pass) * slower
    stepped = work.adam / (workers if stages.trained else 1)
    update = (stepped + work.normalise + work.average / workers) * slower
    talking = 0.0
    if workers > 1:
        talking = sum(
            times * link.seconds(kind, size, workers)
            for kind, size, times in collectives(stages, sizes, passes)
        )
    return Seconds(computing, update, talking, overlap * min(talking, computing))
