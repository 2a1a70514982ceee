"""What a sweep's trials say together: the front of several scores, lineage, scores of one age."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sid_ray.sweep.pareto import front
from sid_ray.sweep.results import Sweep, TrialRecord, is_number


def pareto_front(sweep: Sweep) -> list[TrialRecord]:
    """Candidates that no other one beats in all metrics at once; by the first one, best first.

    By their newest scores. A trial without one of them is in no front; equal ones are in together.
    """
    by_name = {trial.name: trial for trial in sweep.candidates}
    scores = {
        name: {m.name: value for m in sweep.metrics if (value := trial.last(m.name)) is not None}
        for name, trial in by_name.items()
    }
    return [by_name[name] for name in front(sweep.metrics, scores)]


def ancestry(sweep: Sweep, trial: TrialRecord) -> list[tuple[str, int, int]]:
    """Whose training is in a trial's weights: (trial, from images, to images), the first one first.

    Follows exploits back; a donor is taken as it was when its weights were.
    """
    found: list[tuple[str, int, int]] = []
    name, end, exploits = trial.name, trial.images_seen, list(trial.exploits)
    most = sum(len(each.exploits) for each in sweep.trials.values())  # a damaged file may turn back
    while exploits and len(found) < most:
        last = exploits[-1]
        found.append((name, last.images_seen, end))
        name, end = last.from_trial, last.images_seen
        donor = sweep.trials.get(name)
        # Only what the donor took before the leg whose weights were taken.
        exploits = donor.exploits[: legs_until(donor, last.from_run)] if donor else []
    return [(name, 0, end), *found[::-1]]


def legs_until(trial: TrialRecord, run: str) -> int:
    """How many exploits a trial had behind it when it was a run of this name."""
    return trial.runs.index(run) if run in trial.runs else 0


def reached(
    sweep: Sweep, least: int, share: float = 0.5
) -> tuple[int, list[tuple[TrialRecord, float]]]:
    """The most images at which enough trials have a score, and these scores.

    Enough are ``least``, and ``share`` of those with any score; where it is nowhere enough, the
    images at which there are most.

    Where trials are stopped at rungs, newest scores are of different ages; these are not. (0, [])
    for none. Of trials that took another one's weights only the first leg counts.
    """
    name = sweep.metric.name
    at: dict[int, list[tuple[TrialRecord, float]]] = {}
    for trial in sweep.trials.values():
        own = [s for s in trial.segments if s.run == trial.runs[0]] if trial.runs else []
        for segment in own:
            value = segment.scores.get(name)
            if is_number(value):
                at.setdefault(segment.images_seen, []).append((trial, float(value or 0.0)))
    scored = {trial.name for there in at.values() for trial, _ in there}
    enough = max(least, share * len(scored))
    best = max(at, key=lambda n: (min(len(at[n]), enough), n), default=0)
    return best, at.get(best, [])


def shown(values: Iterable[Any]) -> str:
    """Values of a point or a score, as short as they can be told apart."""
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
