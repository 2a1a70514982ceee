"""How much of the differences between trials each field explains, by Optuna's fANOVA.

Source: Hutter, Hoos, Leyton-Brown 2014, "An efficient approach for assessing hyperparameter
importance". A forest of regression trees is fitted to (point, score); a field's importance is the
share of the forest's variance that it causes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sid_ray.metrics.names import larger_is_better
from sid_ray.sweep.analysis import reached
from sid_ray.sweep.results import Sweep
from sid_ray.sweep.sampling import distribution
from sid_ray.sweep.space import Choice, Domain, Range, Value
from sid_ray.sweep.trials import Point

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
    images, scored = reached(sweep, LEAST)
    points = [trial.first_point for trial, _ in scored]
    values = [value for _, value in scored]
    if len(scored) < LEAST:
        return Importance(
            {},
            {},
            images,
            len(scored),
            trouble=f"importance needs {LEAST} trials with a score at equal images, there are "
            f"{len(scored)}: run more of them (--trials)",
        )
    if len(set(values)) == 1:
        return Importance(
            {}, {}, images, len(scored), trouble=f"all {len(scored)} trials have the same score"
        )
    logarithm = is_distance(sweep.metric.name) and min(values) > 0
    targets = [math.log(value) for value in values] if logarithm else values
    domains = domains_of(sweep)
    always = [name for name in domains if all(name in point for point in points)]
    shares = explained(points, targets, {name: domains[name] for name in always})
    conditional: dict[str, tuple[float, int]] = {}
    for name in (name for name in domains if name not in always):
        have = [place for place, point in enumerate(points) if name in point]
        some = [targets[place] for place in have]
        if len(have) >= LEAST and len(set(some)) > 1:
            asked = {other: domains[other] for other in (*always, name)}
            share = explained([points[place] for place in have], some, asked)[name]
            conditional[name] = (share, len(have))
    return Importance(shares, conditional, images, len(scored), logarithm)


def is_distance(name: str) -> bool:
    return not larger_is_better(name)


def explained(
    points: Sequence[Point], values: Sequence[float], domains: dict[str, Domain]
) -> dict[str, float]:
    """Each field's share, largest first. A field of one value has none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = dict.fromkeys(domains, 0.0)
    varied = {n: d for n, d in domains.items() if len({point[n] for point in points}) > 1}
    if not varied:
        return found
    study = study_of(points, values, varied)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
    shares = optuna.importance.get_param_importances(
        study, evaluator=evaluator, params=list(varied)
    )
    found |= {name: float(share) for name, share in shares.items()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def study_of(points: Sequence[Point], values: Sequence[float], domains: dict[str, Domain]) -> Any:
    """Optuna's study of these trials, as if it had drawn them."""
    import optuna

    distributions = {name: distribution(domain) for name, domain in domains.items()}
    study = optuna.create_study(direction="minimize")
    for point, value in zip(points, values, strict=True):
        study.add_trial(
            optuna.trial.create_trial(
                params={name: point[name] for name in domains},
                distributions=distributions,
                value=value,
            )
        )
    return study


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
