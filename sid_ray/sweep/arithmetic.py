"""Where trials are judged and what a sweep may cost: pure arithmetic.

A trial runs from one decision to the next; all are known beforehand, in images seen. ASHA's rungs
are those of Ray Tune 2.60.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sid_ray.sweep.space import Metric, Scheduler, Space, SweepBudget

WORST = 1e9  # of a trial that diverged: finite, because NaN and infinity upset every scheduler


def worst(metric: Metric) -> float:
    """What a trial that diverged reports."""
    return -metric.sign * WORST


def rungs(grace: int, images: int, reduction: float) -> tuple[float, ...]:
    """Where ASHA judges, ascending: grace, grace * reduction, ... up to images.

    With Ray's rounding: 1 to 1000 by 10 ends at 100, because the quotient of the logarithms is
    a little below 3.
    """
    import numpy as np

    count = int(np.log(images / grace) / np.log(reduction) + 1)
    return tuple(grace * reduction**k for k in range(count))


def whole(images: float, batch_size: int) -> int:
    """Images rounded up to whole batches: a run ends after a batch."""
    return math.ceil(images / batch_size) * batch_size


def decision_points(
    budget: SweepBudget, scheduler: Scheduler, batch_size: int = 1
) -> tuple[int, ...]:
    """Where a trial ends a segment, ascending, in whole batches; the last is its end."""
    points: Iterable[int] = ()
    end = whole(budget.images, batch_size)
    if scheduler == "asha":
        found = rungs(budget.grace, budget.images, budget.reduction)
        points = (whole(rung, batch_size) for rung in found)
    elif scheduler == "pbt":
        interval = whole(budget.interval, batch_size)
        points = range(interval, end, interval)
    return (*sorted({point for point in points if point < end}), end)


def next_point(points: Sequence[int], images_seen: int) -> int | None:
    """Where a trial's next segment ends, None at its end."""
    return next((point for point in points if point > images_seen), None)


def segment_end(points: Sequence[int], images_seen: int, reported: int) -> int:
    """Where the segment ends that a trial begins, or goes on with, at ``images_seen``.

    That is ``images_seen`` itself where it is a decision whose result was not ``reported`` yet: a
    trial that was killed between the two has only to tell it.
    """
    if images_seen in points and images_seen > reported:
        return images_seen
    return next_point(points, images_seen) or points[-1]


class Cost(NamedTuple):
    """Images of a sweep."""

    least: int  # every trial but the first is stopped at once
    most: int  # none is ever stopped
    expected: int  # of trials in an order without meaning, each rung passing one in ``reduction``


def cost(space: Space, trials: int, batch_size: int = 1) -> Cost:
    """What a sweep's trials see, capped by budget.total."""
    points = decision_points(space.budget, space.scheduler, batch_size)
    most = trials * points[-1]
    least = expected = most
    if space.scheduler == "asha":
        least = points[-1] + (trials - 1) * points[0]
        expected = round(sum(asha_share(number, points, space.budget) for number in range(trials)))
    cap = space.budget.total or most
    return Cost(min(least, cap), min(most, cap), min(expected, cap))


def asha_share(number: int, points: Sequence[int], budget: SweepBudget) -> float:
    """Expected images of the trial that comes to the first rung after ``number`` others."""
    seen, alive, there = float(points[0]), 1.0, float(number)
    for before, after in itertools.pairwise(points):
        passes = pass_share(there, budget.reduction)
        alive *= passes
        seen += alive * (after - before)
        there /= budget.reduction
    return seen


def pass_share(there: float, reduction: float) -> float:
    """Chance that a score is no worse than the cutoff of ``there`` others, all orders alike."""
    if there < 1:
        return 1 - there / 2
    return (there - (1 - 1 / reduction) * (there - 1)) / (there + 1)


def may_begin(space: Space, images_spent: int) -> bool:
    """Whether the sweep's total leaves room for one more trial."""
    return not space.budget.total or images_spent < space.budget.total
