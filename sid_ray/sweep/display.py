"""Values, points and scores as they are shown; a sweep's progress, and the table at its end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sid_ray.console import Display, duration
from sid_ray.metrics.names import shown_score
from sid_ray.sweep.pareto import best_trial, front_of, ranked
from sid_ray.sweep.repeats import read_repeats, spent_in
from sid_ray.sweep.space import Metric, Space, Value
from sid_ray.sweep.trials import RUNNING, TrialRecord, read_trials, spent_of, states_of


def shown_values(values: Iterable[Any]) -> str:
    """Values of a point or a score, as short as they can be told apart."""
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def shown_scores(metrics: Sequence[Metric], scores: Mapping[str, float]) -> str:
    """'FID 9.81, CLIP 0.301', of the metrics that there are."""
    there = [metric.name for metric in metrics if metric.name in scores]
    return ", ".join(f"{name} {shown_score(name, scores[name])}" for name in there)


def shown_point(point: Mapping[str, Value]) -> str:
    """'alpha 1.08, group_size 16'."""
    names = short_names(list(point))
    return ", ".join(f"{names[name]} {shown_values([value])}" for name, value in point.items())


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each field's name, all of it where two would look alike."""
    leaves = [name.rpartition(".")[2] for name in names]
    return {
        n: leaf if leaves.count(leaf) == 1 else n for n, leaf in zip(names, leaves, strict=True)
    }


class SweepDisplay(Display):
    """'2 running, 5 of 16 done  FD-digits-cnn 5.21 (003)  45,120/97,000 images  3:20 left'."""

    def __init__(self, console, space: Space, folder: Path, expected: int, trials: int):
        super().__init__(console, expected)
        self.space, self.folder, self.trials = space, folder, trials
        self.lines = list(read_trials(folder).notes)
        self.began = self.counted_at = time.monotonic()
        self.spent_before = self.counted = self.spent(self.told())

    def told(self) -> list[TrialRecord]:
        return list(read_trials(self.folder).trials.values())

    def spent(self, told: Sequence[TrialRecord]) -> int:
        """Images of all trials, and of their repeats with other seeds."""
        return spent_of(told) + spent_in(read_repeats(self.folder))

    def tell(self, text: str) -> None:
        """A line above the progress, at the next look."""
        self.lines.append(text)

    def look(self) -> None:
        """Shows what the ledger says now."""
        lines, self.lines = self.lines, []
        spent = self.spent(self.told())
        self.total = max(self.total, spent)
        self.update("sweep", {"images_seen": spent}, lines)

    def describe(self, metrics: Mapping[str, float]) -> str:
        told = self.told()
        spent, running = self.spent(told), sum(trial.state == RUNNING for trial in told)
        parts = [f"{running} running, {len(told) - running} of {self.trials} done"]
        best = best_trial(self.space.metrics, told)
        if best:
            parts.append(f"{shown_scores(self.space.metrics, best.scores)} ({best.name})")
        parts.append(f"{spent:,}/{self.total:,} images")
        left_s = self.left_s(spent)
        if left_s is not None:
            parts.append(f"{duration(left_s)} left")
        return "  ".join(parts)

    def left_s(self, spent: int) -> float | None:
        """Seconds to the end at the speed so far; images are counted at decisions only."""
        now = time.monotonic()
        if spent != self.counted:
            self.counted, self.counted_at = spent, now
        trained = spent - self.spent_before
        if not trained or spent >= self.total:
            return None
        needed_s = (self.total - spent) * (self.counted_at - self.began) / trained
        return max(0.0, needed_s - (now - self.counted_at))


def table_of_trials(space: Space, told: Sequence[TrialRecord]) -> list[str]:
    """A line a trial, the best first, and one that counts them and their images."""
    lines = []
    for trial in ranked(space.metrics, told):
        scores = shown_scores(space.metrics, trial.scores) or "no score"
        why = f"; {trial.why}" if trial.why else ""
        legs = f", {len(trial.legs)} legs" if len(trial.legs) > 1 else ""
        lines.append(
            f"{trial.run}  {trial.state} at {trial.images_seen:,} images{legs}  {scores}  "
            f"{shown_point(trial.point)}{why}"
        )
    states = ", ".join(f"{count} {state}" for state, count in states_of(told).items())
    lines.append(f"{len(told)} trials ({states}), {spent_of(told):,} images")
    if len(space.metrics) > 1:
        best = ", ".join(trial.run for trial in front_of(space.metrics, told))
        lines.append(f"Pareto front: {best or 'empty'}")
    return lines
