"""How much of the differences between trials each field explains, by Optuna's fANOVA.

Source: Hutter, Hoos, Leyton-Brown 2014, "An efficient approach for assessing hyperparameter
importance". A forest of regression trees is fitted to (point, score); a field's importance is the
share of the forest's variance that it causes alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sid_ray.metrics.names import larger_is_better
from sid_ray.sweep.results import Sweep
from sid_ray.sweep.sampling import distribution
from sid_ray.sweep.space import Choice, Domain, Range, Value
from sid_ray.sweep.trials import Point, TrialRecord

LEAST = 8  # trials with a score; fewer say nothing about several fields
SEED = 0  # of the forest


@dataclass(frozen=True)
class Importance:
    """Shares of the score's variance.

    Args:
        shares: of the fields that all trials have, largest first; they sum to 1.
        conditional: of a field that only some trials have: (its share among these, how many).
        images_seen: at which the scores were compared.
        trials: how many were.
        logarithm: whether the score's logarithm was explained, as its curves show it.
        trouble: why there are no shares; empty where there are.
    """

    shares: dict[str, float]
    conditional: dict[str, tuple[float, int]]
    images_seen: int = 0
    trials: int = 0
    logarithm: bool = False
    trouble: str = ""


def importance_of(sweep: Sweep) -> Importance:
    """Of every field for the first score, among trials of the same images seen."""
    images, scored = reached_scores(sweep, LEAST)
    points, values = [trial.first_point for trial, _ in scored], [value for _, value in scored]
    trouble = ""
    if len(scored) < LEAST:
        trouble = (
            f"importance needs {LEAST} trials with a score at equal images, there are "
            f"{len(scored)}: run more of them (--trials)"
        )
    elif len(set(values)) == 1:
        trouble = f"all {len(scored)} trials have the same score"
    if trouble:
        return Importance({}, {}, images, len(scored), trouble=trouble)
    logarithm = not larger_is_better(sweep.metric.name) and min(values) > 0
    targets = [math.log(value) for value in values] if logarithm else values
    domains = domains_of(sweep)
    always = [name for name in domains if all(name in point for point in points)]
    conditional: dict[str, tuple[float, int]] = {}
    for name in (name for name in domains if name not in always):
        have = [
            (point, value) for point, value in zip(points, targets, strict=True) if name in point
        ]
        if len(have) >= LEAST and len({value for _, value in have}) > 1:
            conditional[name] = explained(domains, [*always, name], have)[name], len(have)
    shares = explained(domains, always, list(zip(points, targets, strict=True)))
    return Importance(shares, conditional, images, len(scored), logarithm)


def explained(
    domains: dict[str, Domain], names: Sequence[str], scored: Sequence[tuple[Point, float]]
) -> dict[str, float]:
    """Each field's share, largest first. A field of one value has none."""
    import optuna

    varied = [name for name in names if len({point[name] for point, _ in scored}) > 1]
    shares = {}
    if varied:
        study = study_of({name: domains[name] for name in varied}, scored)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    found = {name: float(shares.get(name, 0.0)) for name in names}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def study_of(
    domains: Mapping[str, Domain],
    scored: Iterable[tuple[Point, float]],
    direction: Literal["minimize", "maximize"] = "minimize",
) -> Any:
    """Optuna's study of these points, as if it had drawn what they have of these fields."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=direction)
    for point, value in scored:
        there = {name: domain for name, domain in domains.items() if name in point}
        study.add_trial(
            optuna.trial.create_trial(
                params={name: point[name] for name in there},
                distributions={name: distribution(domain) for name, domain in there.items()},
                value=value,
            )
        )
    return study


def reached_scores(
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


def domains_of(sweep: Sweep) -> dict[str, Domain]:
    """One domain a field: of its cases all together, wide enough for every value there is."""
    found: dict[str, Domain] = {}
    parameters = sweep.space.parameters if sweep.space else ()
    for name in sweep.fields:
        seen = [point[name] for point in sweep.points if name in point]
        cases = [p.domain for p in parameters if p.name == name]
        if cases or seen:
            found[name] = joined(cases, seen)
    return found


def joined(cases: Sequence[Domain], seen: Sequence[Value]) -> Domain:
    """A range where all is numbers of ranges, else the values that there are."""
    ranges = [case for case in cases if isinstance(case, Range)]
    numbers = [v for v in seen if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(ranges) == len(cases) and len(numbers) == len(seen):
        ends = [end for case in ranges for end in (case.low, case.high)]
        low, high = min([*ends, *numbers]), max([*ends, *numbers])
        integer = bool(ranges) and all(case.integer for case in ranges)
        log = bool(ranges) and all(case.log for case in ranges) and low > 0
        return Range(float(low), float(high), log, 0.0, integer)
    values = [v for case in cases if isinstance(case, Choice) for v in case.values]
    return Choice(tuple(dict.fromkeys([*values, *seen])))
