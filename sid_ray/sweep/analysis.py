"""What a sweep's trials say together: whose weights went where, and scores of one age."""

from __future__ import annotations

from sid_ray.sweep.results import Sweep
from sid_ray.sweep.trials import Leg, TrialRecord


def ancestry(sweep: Sweep, trial: TrialRecord) -> list[tuple[str, int, int]]:
    """Whose training is in a trial's weights: (trial, from images, to images), the first one first.

    Follows exploits back; a donor is taken as it was when its weights were.
    """
    found: list[tuple[str, int, int]] = []
    name, end, legs = trial.name, trial.images_seen, trial.legs
    most = sum(len(each.exploits) for each in sweep.trials.values())  # a damaged file may turn back
    while len(legs) > 1 and len(found) < most:
        last = legs[-1]
        found.append((name, last.began_at, end))
        name, end = last.from_trial, last.began_at
        legs = legs_until(sweep.trials.get(name), last.from_run)
    return [(name, 0, end), *found[::-1]]


def legs_until(trial: TrialRecord | None, run: str) -> list[Leg]:
    """The legs of a trial up to its run of this name; the first where it has none such."""
    if trial is None:
        return []
    return trial.legs[: trial.runs.index(run) + 1 if run in trial.runs else 1]


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
        for images, value in trial.scored(name, trial.runs[0]):
            at.setdefault(images, []).append((trial, value))
    scored = {trial.name for there in at.values() for trial, _ in there}
    enough = max(least, share * len(scored))
    best = max(at, key=lambda n: (min(len(at[n]), enough), n), default=0)
    return best, at.get(best, [])
