"""A sweep's progress, and the table at its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sid_ray.console import Display, duration
from sid_ray.metrics.names import shown_score
from sid_ray.sweep.ledger import RUNNING, Ledger, TrialHistory, spent_of
from sid_ray.sweep.pareto import front_of
from sid_ray.sweep.space import Metric, Space, Value


class SweepDisplay(Display):
    """'2 running, 5 of 16 done  FD-digits-cnn 5.21 (003)  45,120/97,000 images  3:20 left'."""

    def __init__(self, console, space: Space, folder: Path, expected: int, trials: int):
        super().__init__(console, expected)
        self.space, self.ledger, self.trials = space, Ledger(folder), trials
        self.lines: list[str] = []
        self.began = self.counted_at = time.monotonic()
        self.spent_before = self.counted = spent_of(self.told())

    def told(self) -> list[TrialHistory]:
        return list(self.ledger.trials().values())

    def tell(self, text: str) -> None:
        """A line above the progress, at the next look."""
        self.lines.append(text)

    def look(self) -> None:
        """Shows what the ledger says now."""
        lines, self.lines = self.lines, []
        spent = spent_of(self.told())
        self.total = max(self.total, spent)
        self.update("sweep", {"images_seen": spent}, lines)

    def describe(self, metrics: Mapping[str, float]) -> str:
        told = self.told()
        spent, running = spent_of(told), sum(trial.state == RUNNING for trial in told)
        parts = [f"{running} running, {len(told) - running} of {self.trials} done"]
        best = front_of(self.space.metrics, told)
        if best:
            parts.append(f"{scores_of(self.space.metrics, best[0])} ({best[0].trial})")
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


def scores_of(metrics: Sequence[Metric], trial: TrialHistory) -> str:
    """'FID 9.81, CLIP 0.301'."""
    found = trial.scores
    return ", ".join(f"{m.name} {shown_score(m.name, found[m.name])}" for m in metrics if found)


def shown_point(point: Mapping[str, Value]) -> str:
    """'alpha 1.08, group_size 16'."""

    def shown(value: Value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name.rpartition('.')[2]} {shown(value)}" for name, value in point.items())


def ordered(metrics: Sequence[Metric], told: Sequence[TrialHistory]) -> list[TrialHistory]:
    """Those that came furthest first, of them the best by the first metric."""
    first = metrics[0]

    def place(trial: TrialHistory) -> tuple[bool, int, float]:
        score = trial.scores.get(first.name, float("inf") * -first.sign)
        images = trial.segments[-1].images_seen if trial.segments else 0
        return trial.state in ("diverged", "failed"), -images, -first.sign * score

    return sorted(told, key=place)


def table(space: Space, told: Sequence[TrialHistory]) -> list[str]:
    """A line a trial, and one that counts them and their images."""
    lines = []
    for trial in ordered(space.metrics, told):
        scores = scores_of(space.metrics, trial) or "no score"
        why = f"; {trial.why}" if trial.why else ""
        legs = f", {len(trial.legs)} legs" if len(trial.legs) > 1 else ""
        lines.append(
            f"{trial.run}  {trial.state} at {trial.images_seen:,} images{legs}  {scores}  "
            f"{shown_point(trial.point)}{why}"
        )
    counts = Counter(trial.state for trial in told)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    lines.append(f"{len(told)} trials ({states}), {spent_of(told):,} images")
    if len(space.metrics) > 1:
        best = ", ".join(trial.run for trial in front_of(space.metrics, told))
        lines.append(f"Pareto front: {best or 'empty'}")
    return lines
