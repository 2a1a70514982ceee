"""Which of several trials is best, by one score or by several at once: one rule for all that show.

A trial may be the best when it came to its end, or while none has, when it works. Scores at fewer
images are worse, or luckier, through no merit of the point. The best of these is that with the best
newest score of the first metric; of equal ones that with the best next score, then that which cost
fewer images. So the best trial is always on the front.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from sid_ray.sweep.space import Metric
from sid_ray.sweep.trials import TrialRecord


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


def best_candidates(metrics: Sequence[Metric], trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Trials that may be the best, the best first."""
    names = {metric.name for metric in metrics}
    able = [trial for trial in trials if trial.state != "failed" and names <= trial.scores.keys()]
    whole = [trial for trial in able if trial.state == "finished"] or able
    return sorted(whole, key=lambda trial: costs(metrics, trial))


def costs(metrics: Sequence[Metric], trial: TrialRecord) -> list[float]:
    """What orders trials, less is better: newest scores (infinite for none), then images."""
    scores = trial.scores
    found = [-m.sign * scores[m.name] if m.name in scores else math.inf for m in metrics]
    return [*found, trial.images_spent]


def best_trial(metrics: Sequence[Metric], trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The best trial, None for none."""
    return next(iter(best_candidates(metrics, trials)), None)


def front_of(metrics: Sequence[Metric], trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Candidates that no other one beats in all metrics at once, the best first.

    By their newest scores; with one metric the best trial, or equal ones. A trial without one of
    the scores is in no front.
    """
    by_name = {trial.name: trial for trial in best_candidates(metrics, trials)}
    names = front(metrics, {name: trial.scores for name, trial in by_name.items()})
    return [by_name[name] for name in names]


def ranked(metrics: Sequence[Metric], trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """All trials: the candidates, the best first; of the others those that came furthest first.

    At equal images seen by their scores; those that diverged or failed are the last.
    """
    trials = list(trials)
    first = best_candidates(metrics, trials)
    names = {trial.name for trial in first}

    def place(trial: TrialRecord) -> tuple[bool, int, list[float]]:
        images = trial.segments[-1].images_seen if trial.segments else 0
        return trial.state in ("diverged", "failed"), -images, costs(metrics, trial)

    return first + sorted((trial for trial in trials if trial.name not in names), key=place)
