"""Points of a search space: drawn here, by Optuna, or by Ray Tune's own distributions.

A point drawn here is a function of (seed, number), so that a sweep which goes on draws what it
would have drawn. Ray and Optuna are imported where they are asked for.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.sweep.space import (
    Choice,
    Domain,
    Parameter,
    Range,
    Space,
    Value,
    chosen,
    config_of,
    known_values,
    walk,
)


def draw(domain: Domain, generator: random.Random) -> Value:
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
        return draw(parameter.domain, random.Random(f"{seed}/{number}/{parameter.key}"))

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
        point = chosen(space, base, drawn)
        found.setdefault(tuple(point.items()), point)
    return list(found.values())


@dataclass(frozen=True)
class DefineByRun:
    """The space as Optuna's define-by-run function: only what is active is suggested.

    An object, because Ray pickles it with its searcher. Parameters have their keys as names.
    """

    space: Space
    base: DistillConfig

    def __call__(self, trial: Any) -> None:
        self.point(trial)

    def point(self, trial: Any) -> dict[str, Value]:
        """The point out of an Optuna trial, or of a FixedTrial."""
        return walk(self.space, self.base, lambda parameter: suggest(trial, parameter))


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


def point_of(space: Space, base: DistillConfig, drawn: Mapping[str, Any]) -> dict[str, Value]:
    """The point behind what a searcher drew, key -> value; what is not active is left out.

    Values are clamped to their ranges: Ray's PBT multiplies without looking at them.
    """
    return walk(space, base, lambda p: p.domain.clamped(drawn[p.key]))


def ray_domain(domain: Domain) -> Any:
    """The same distribution of Ray Tune, both ends included as ours are."""
    from ray import tune

    if isinstance(domain, Choice):
        return tune.grid_search(list(domain.values)) if domain.grid else tune.choice(domain.values)
    low, high, step = domain.low, domain.high, domain.step
    if domain.integer:
        low, high = round(low), round(high)
        if step:
            return tune.qrandint(low, high, round(step))
        return (tune.lograndint if domain.log else tune.randint)(low, high + 1)
    if step:
        return tune.quniform(low, high, step)
    return (tune.loguniform if domain.log else tune.uniform)(low, high)


def ray_space(space: Space) -> dict[str, Any]:
    """Tune's param_space: every key, active or not; point_of() leaves out what is not."""
    return {parameter.key: ray_domain(parameter.domain) for parameter in space.parameters}


def mutations(space: Space) -> dict[str, Any]:
    """PBT's hyperparam_mutations: choices in their order, of which Ray takes a neighbour."""
    return {
        parameter.key: list(parameter.domain.values)
        if isinstance(parameter.domain, Choice)
        else ray_domain(parameter.domain)
        for parameter in space.parameters
    }


def bounds(space: Space) -> dict[str, list[float]]:
    """PB2's hyperparam_bounds. Its model is linear: a loguniform field is its exponent of 10."""
    found = {}
    for parameter in space.parameters:
        domain = parameter.domain
        if not isinstance(domain, Range):
            raise UserError(f"{parameter.name} is a choice, which scheduler pb2 cannot vary")
        ends = (domain.low, domain.high)
        found[parameter.key] = [math.log10(end) for end in ends] if domain.log else list(ends)
    return found


def from_bounds(space: Space, drawn: Mapping[str, float]) -> dict[str, float]:
    """The inverse for values that PB2 drew."""
    logs = {p.key for p in space.parameters if isinstance(p.domain, Range) and p.domain.log}
    return {key: 10.0**value if key in logs else value for key, value in drawn.items()}


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
