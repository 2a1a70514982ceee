"""Points of a search space: at random, of a grid, or Optuna's.

A point is a function of (seed, number) and, where Optuna proposes it, of the ledger: its study is
made anew for each point from what the trials before it scored. So nothing is pickled, and a sweep
whose driver was killed draws what it would have drawn.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.sweep.arithmetic import worst
from sid_ray.sweep.space import (
    Choice,
    Domain,
    Parameter,
    Space,
    Value,
    chosen_point,
    config_of,
    known_values,
    walk,
)
from sid_ray.sweep.trials import RUNNING, TrialRecord

LEAST_AT_RANDOM, MOST_AT_RANDOM = 4, 10  # trials before TPE has something to go by


def draw_value(domain: Domain, generator: random.Random) -> Value:
    """One value."""
    if isinstance(domain, Choice):
        return generator.choice(domain.values)
    low, high = domain.low, domain.high
    if domain.step:
        steps = int((high - low) / domain.step + 1e-9)
        return domain.clamped(low + generator.randint(0, steps) * domain.step)
    if domain.integer and not domain.log:
        return generator.randint(round(low), round(high))
    if domain.log:
        # The ends of whole numbers get as much room as the others.
        pad = 0.5 if domain.integer else 0.0
        value = math.exp(generator.uniform(math.log(low - pad), math.log(high + pad)))
        return domain.clamped(value)
    return domain.clamped(generator.uniform(low, high))


def random_point(space: Space, base: DistillConfig, seed: int, number: int) -> dict[str, Value]:
    """The point of a trial by its number. A field's draw does not depend on other fields."""

    def own(parameter: Parameter) -> Value:
        return draw_value(parameter.domain, random.Random(f"{seed}/{number}/{parameter.key}"))

    return walk(space, base, own)


def grid_points(space: Space, base: DistillConfig) -> list[dict[str, Value]]:
    """Every point of a space of choices, once; what a condition switches off makes no more."""
    keys = [parameter.key for parameter in space.parameters]
    values = []
    for parameter in space.parameters:
        if not isinstance(parameter.domain, Choice):
            raise UserError(f"{parameter.name} varies over a range, which no grid can hold")
        values.append(parameter.domain.values)
    found: dict[tuple, dict[str, Value]] = {}
    for combination in itertools.product(*values):
        drawn = dict(zip(keys, combination, strict=True))
        point = chosen_point(space, base, drawn)
        found.setdefault(tuple(point.items()), point)
    return list(found.values())


def keyed(space: Space, base: DistillConfig, point: Mapping[str, Value]) -> dict[str, Value]:
    """A point by the keys of its parameters, as a searcher is told of it."""
    found: dict[str, Value] = {}

    def note(parameter: Parameter) -> Value:
        found[parameter.key] = point[parameter.name]
        return point[parameter.name]

    walk(space, base, note)
    return found


def recipe_point(space: Space, base: DistillConfig) -> dict[str, Value]:
    """The recipe's own values where the space holds them: a good first guess for a searcher.

    Empty where they lie outside of it.
    """
    known = known_values(space, base)
    point: dict[str, Value] = {}
    for parameter in space.parameters:
        value = known.get(parameter.name)
        if parameter.name in point or not all(one.holds(known) for one in parameter.when):
            continue
        if value is None or not parameter.domain.holds(value):
            return {}
        point[parameter.name] = value
    try:
        config_of(space, base, point)
    except UserError:
        return {}
    return point


# Optuna -------------------------------------------------------------------------------------------


def optuna_point(
    space: Space, base: DistillConfig, told: Sequence[TrialRecord], number: int
) -> dict[str, Value]:
    """The point of the trial with this number. The first is the recipe's own, where it can be."""
    import optuna

    if number == 0 and (own := recipe_point(space, base)):
        return own
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    at_random = min(MOST_AT_RANDOM, max(LEAST_AT_RANDOM, space.trials // 3))
    sampler = optuna.samplers.TPESampler(
        seed=random.Random(f"{space.seeds[0]}/{number}").getrandbits(32),
        n_startup_trials=at_random,
        constant_liar=True,  # running trials repel: several at once are not to be alike
    )
    study = optuna.create_study(
        directions=["minimize" if m.direction == "min" else "maximize" for m in space.metrics],
        sampler=sampler,
    )
    for trial in told:
        if trial.state not in ("failed", "lost"):
            study.add_trial(as_optuna(space, base, trial))
    trial = study.ask()
    return walk(space, base, functools.partial(suggest, trial))


def suggest(trial: Any, parameter: Parameter) -> Value:
    """One value from anything with Optuna's suggest methods."""
    key, domain = parameter.key, parameter.domain
    if isinstance(domain, Choice):
        return trial.suggest_categorical(key, list(domain.values))
    step = domain.step or None
    if domain.integer:
        low, high = round(domain.low), round(domain.high)
        return trial.suggest_int(key, low, high, step=round(step or 1), log=domain.log)
    return trial.suggest_float(key, domain.low, domain.high, step=step, log=domain.log)


def as_optuna(space: Space, base: DistillConfig, trial: TrialRecord) -> Any:
    """A trial as Optuna's.

    One that was stopped at a rung is a pruned one, which TPE ranks by how far it came, then by its
    score there: scores at different images do not compare. With several metrics Optuna has no
    pruning, and the last scores count.
    """
    import optuna

    states = optuna.trial.TrialState
    params = keyed(space, base, trial.first_point)
    domains = {p.key: distribution(p.domain) for p in space.parameters if p.key in params}
    state, values, between = states.RUNNING, None, {}
    scores = trial.scores
    if trial.state != RUNNING and len(space.metrics) > 1:
        state = states.COMPLETE
        values = [scores.get(metric.name, worst(metric)) for metric in space.metrics]
    elif trial.state != RUNNING:
        metric = space.metrics[0]
        if trial.state != "diverged":
            between = dict(trial.scored(metric.name))
        state = states.PRUNED
        if trial.state == "finished":
            state, values = states.COMPLETE, [scores.get(metric.name, worst(metric))]
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions=domains,
        values=values,
        intermediate_values=between,
    )


def distribution(domain: Domain) -> Any:
    """What suggest() asks Optuna for."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    step = domain.step or None
    if domain.integer:
        low, high = round(domain.low), round(domain.high)
        return IntDistribution(low, high, log=domain.log, step=round(step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=step)
