"""The only truth about a sweep's trials, on its driver's disk: trials.jsonl, written.

    runs/SWEEP/sweep.json     name, space, recipe, metrics, when it began, state: results.py
    runs/SWEEP/trials.jsonl   a line when a trial begins, ends a segment, exploits another, or ends
    runs/SWEEP-000, ...       the trials' runs, ordinary ones; runs/SWEEP-000-leg2 after an exploit

Ray Tune's own notes may forget what a killed driver did in its last second; a line here is with the
operating system before Tune hears of what it says. One process writes: it holds the sweep's lock.
What the lines mean is in trials.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sid_ray.storage.durable import append_line
from sid_ray.sweep.parent import after_event
from sid_ray.sweep.space import Value
from sid_ray.sweep.trials import RUNNING, TRIALS, End, TrialRecord, read_trials


class Ledger:
    """trials.jsonl of a sweep's folder. What is told twice is written once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / TRIALS

    def trials(self) -> dict[str, TrialRecord]:
        """Every trial by its name, in the order in which they began."""
        return read_trials(self.folder).trials

    def begin(self, trial: str, run: str, point: Mapping[str, Value]) -> None:
        """Also of a trial that had ended, and is tried again."""
        known = self.trials().get(trial)
        if known is None or known.state != RUNNING:
            self._append(event="begin", trial=trial, run=run, point=dict(point))

    def segment(
        self,
        trial: str,
        run: str,
        images_seen: int,
        scores: Mapping[str, float],
        seconds: float,
    ) -> None:
        """A trial that goes on after its driver was killed tells its last result again."""
        known = self.trials().get(trial)
        if known and any((s.run, s.images_seen) == (run, images_seen) for s in known.segments):
            return
        self._append(
            event="segment",
            trial=trial,
            run=run,
            images_seen=images_seen,
            scores=dict(scores),
            seconds=round(seconds, 1),
        )

    def exploit(
        self, trial: str, donor: TrialRecord, images_seen: int, run: str, point: Mapping[str, Any]
    ) -> None:
        self._append(
            event="exploit",
            trial=trial,
            from_trial=donor.name,
            from_run=donor.run,
            images_seen=images_seen,
            run=run,
            point=dict(point),
        )

    def end(self, trial: str, state: End, why: str, images_seen: int) -> None:
        known = self.trials().get(trial)
        if known and known.state == state:
            return
        self._append(event="end", trial=trial, state=state, why=why, images_seen=images_seen)

    def _append(self, **event: Any) -> None:
        append_line(self.path, event)
        after_event(self.folder)
