"""Which of several trials is best, by one score or by several at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sid_ray.sweep.space import Metric

if TYPE_CHECKING:
    from sid_ray.sweep.ledger import TrialHistory


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a point is nowhere worse and somewhere better; more is better."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)


def front(metrics: Sequence[Metric], scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Names of the points that no other dominates, the best by the first metric first.

    Of points with equal scores all are there. Those without a finite value of each metric are left
    out.
    """
    rewards = {
        name: [metric.sign * values[metric.name] for metric in metrics]
        for name, values in scores.items()
        if all(abs(values.get(metric.name, float("inf"))) < float("inf") for metric in metrics)
    }
    kept = [
        name
        for name, mine in rewards.items()
        if not any(dominates(other, mine) for other in rewards.values())
    ]
    return sorted(kept, key=lambda name: [-value for value in rewards[name]])


def front_of(metrics: Sequence[Metric], trials: Iterable[TrialHistory]) -> list[TrialHistory]:
    """Trials on the front of their last scores; with one metric the best trial, or equal ones.

    Scores at fewer images are worse through no fault of the point: only where no trial has come to
    its end do the others count.
    """
    able = [trial for trial in trials if trial.scores and trial.state not in ("diverged", "failed")]
    whole = [trial for trial in able if trial.state == "finished"] or able
    by_name = {trial.trial: trial for trial in whole}
    names = front(metrics, {name: trial.scores for name, trial in by_name.items()})
    return [by_name[name] for name in names]
