"""Which trial stops or changes when, in images seen. Pure arithmetic, as Ray Tune 2.60 decides it.

The runner leaves the decisions to Ray's schedulers. These functions say them beforehand: where
trials are judged (a trial runs from one such point to the next), what a sweep may cost, and, in
tests, what Ray must answer.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sid_ray.sweep.space import Budget, Choice, Metric, Range, Scheduler, Space, Value

Decision = Literal["CONTINUE", "STOP"]
WORST = 1e9  # of a trial that diverged: finite, because NaN and infinity upset every scheduler
FACTORS = (1.2, 0.8)  # PBT's changes of a number
RESAMPLE = 0.25  # share of PBT's changes that draw anew
QUANTILE = 0.25  # share of the population that is replaced, and that it is replaced by


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


def decision_points(budget: Budget, scheduler: Scheduler, batch_size: int = 1) -> tuple[int, ...]:
    """Where a trial ends a segment, ascending, in whole batches; the last is its end."""
    points: Iterable[int] = ()
    end = whole(budget.images, batch_size)
    if scheduler == "asha":
        found = rungs(budget.grace, budget.images, budget.reduction)
        points = (whole(rung, batch_size) for rung in found)
    elif scheduler in ("pbt", "pb2"):
        interval = whole_interval(budget, batch_size)
        points = range(interval, end, interval)
    return (*sorted({point for point in points if point < end}), end)


def whole_interval(budget: Budget, batch_size: int) -> int:
    """The interval for Ray's scheduler: rounded itself, or after a rounded point the next would
    come some images early, and Ray would let it pass.
    """
    return whole(budget.interval, batch_size)


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


def percentile(values: Iterable[float], share: float) -> float:
    """numpy's linear percentile for a share of 1, NaN left out; NaN for nothing.

    To the last bit, as a score may lie right on it: Ray asks for a per cent, and numpy counts from
    the nearer of two values.
    """
    ordered = sorted(value for value in values if not math.isnan(value))
    if not ordered:
        return math.nan
    place = share * 100 / 100 * (len(ordered) - 1)
    below = math.floor(place)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    part = place - below
    return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


@dataclass
class Asha:
    """Asynchronous successive halving with one bracket, as Ray's AsyncHyperBandScheduler.

    ``scores``: rung -> trial -> score, more is better. A trial is held against those that were
    at its rung before it; the first one always goes on.
    """

    budget: Budget
    metric: Metric
    scores: dict[float, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = rungs(self.budget.grace, self.budget.images, self.budget.reduction)
        self.scores = {rung: {} for rung in reversed(found)}

    def cutoff(self, rung: float) -> float | None:
        """What a score must reach at a rung; None where none was there yet."""
        there = self.scores[rung]
        return percentile(there.values(), 1 - 1 / self.budget.reduction) if there else None

    def decide(self, trial: str, images_seen: int, score: float) -> Decision:
        """A trial's score at images_seen. It counts at the highest rung that is new to it."""
        if images_seen >= self.budget.images:
            return "STOP"
        return self.record(trial, images_seen, self.metric.sign * score)

    def record(self, trial: str, images_seen: int, reward: float) -> Decision:
        for rung, there in self.scores.items():
            if images_seen < rung or trial in there:
                continue
            cutoff = self.cutoff(rung)
            there[trial] = reward
            return "STOP" if cutoff is not None and reward < cutoff else "CONTINUE"
        return "CONTINUE"


class Quantiles(NamedTuple):
    """The worst trials, worst first, and the best, best last."""

    lower: list[str]
    upper: list[str]


def quantiles(rewards: Mapping[str, float], share: float = QUANTILE) -> Quantiles:
    """Which trials PBT replaces, and by which; more is better, NaN counts as no score."""
    ordered = sorted(
        (name for name, value in rewards.items() if not math.isnan(value)),
        key=lambda name: rewards[name],
    )
    if len(ordered) <= 1:
        return Quantiles([], [])
    count = math.ceil(len(ordered) * share)
    if count > len(ordered) / 2:
        count = len(ordered) // 2
    return Quantiles(ordered[:count], ordered[len(ordered) - count :])


def perturbation_due(images_seen: int, changed_at: int, budget: Budget) -> bool:
    """Whether PBT looks at a trial that was last looked at, or exploited, at ``changed_at``."""
    return images_seen >= budget.grace and images_seen - changed_at >= budget.interval


def explored(
    space: Space, point: Mapping[str, Value], generator: random.Random, resample: float = RESAMPLE
) -> dict[str, Value]:
    """PBT's change of a donor's point: a neighbour of each choice, 0.8 or 1.2 times each number.

    Draws in Ray's order. Ray leaves ranges; here, and in the function that the runner gives it,
    values are clamped to them.
    """
    from sid_ray.sweep.sampling import draw

    found: dict[str, Value] = {}
    for parameter in space.parameters:
        old, domain = point[parameter.name], parameter.domain
        anew = generator.random() < resample
        if isinstance(domain, Choice):
            found[parameter.name] = neighbour(domain, old, anew, generator)
        elif anew:
            found[parameter.name] = draw(domain, generator)
        else:
            found[parameter.name] = scaled(domain, old, generator.choice(FACTORS))
    return found


def neighbour(domain: Choice, old: Value, anew: bool, generator: random.Random) -> Value:
    if anew or old not in domain.values:
        return generator.choice(domain.values)
    place = domain.values.index(old) + generator.choice((-1, 1))
    return domain.values[min(max(place, 0), len(domain.values) - 1)]


def scaled(domain: Range, old: Value, factor: float) -> float:
    return domain.clamped(float(old) * factor)


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


def asha_share(number: int, points: Sequence[int], budget: Budget) -> float:
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


def spent(ledger: Iterable[tuple[int, int]]) -> int:
    """Images that segments saw: (images seen at their begin, at their end)."""
    return sum(max(0, end - begin) for begin, end in ledger)


def may_begin(space: Space, images_spent: int) -> bool:
    """Whether the sweep's total leaves room for one more trial."""
    return not space.budget.total or images_spent < space.budget.total
