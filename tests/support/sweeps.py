"""Sweeps without their driver: Ray Tune's ASHA, and what a ledger's events say."""

import json
from types import SimpleNamespace

from ray.tune.schedulers import AsyncHyperBandScheduler

from sid_ray.sweep.space import Metric, SweepBudget
from sid_ray.sweep.trials import TrialRecord, told_by


class Asha:
    """Judges trials by their names, of which it is told one score at a time."""

    def __init__(self, budget: SweepBudget, metric: Metric):
        self.metric, self.known = metric, set[str]()
        self.ray = AsyncHyperBandScheduler(
            time_attr="images_seen",
            metric=metric.name,
            mode=metric.direction,
            max_t=budget.images,
            grace_period=budget.grace,
            reduction_factor=budget.reduction,
        )

    def decide(self, name: str, images_seen: int, score: float) -> str:
        """CONTINUE or STOP."""
        trial = SimpleNamespace(trial_id=name)
        if name not in self.known:
            self.known.add(name)
            self.ray.on_trial_add(None, trial)
        result = {"images_seen": images_seen, self.metric.name: score}
        return self.ray.on_trial_result(None, trial, result)


def trials_of(events: list[dict]) -> dict[str, TrialRecord]:
    """The trials behind a ledger's events, by their names."""
    return told_by("".join(json.dumps(event) + "\n" for event in events).encode()).trials
