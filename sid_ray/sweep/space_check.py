"""A search space held against the recipe that it varies, before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from sid_ray.config.distill_config import DistillConfig, asked_metrics
from sid_ray.errors import UserError
from sid_ray.metrics.names import measured_by, score_of, space_of
from sid_ray.sweep.fields import needs
from sid_ray.sweep.space import (
    KAPPAS,
    SCALE,
    STRATEGY,
    Choice,
    Parameter,
    Range,
    Space,
    Value,
    chosen_point,
    config_of,
    known_values,
)

Wrong = Iterator[tuple[str | int, str]]  # (field, name at the top, or line), what is wrong there


def check_space(space: Space, base: DistillConfig) -> Space:
    """Itself, when it can be run on a recipe. Raises UserError in one line."""
    for check in (searcher, scheduler, guidance, effects, check_conditions, scores, pairs):
        for place, text in check(space, base):
            line = place if isinstance(place, int) else space.lines.get(place, 0)
            raise UserError(f"{space.source}{f':{line}' if line else ''}: {text}")
    return space


def searcher(space: Space, base: DistillConfig) -> Wrong:
    """A grid has values only, and all of them are tried."""
    grid = space.searcher == "grid"
    for parameter in space.parameters:
        name, domain = parameter.name, parameter.domain
        if grid and isinstance(domain, Range):
            yield name, f"{name}: searcher grid needs choice or grid, not a range"
        if not grid and isinstance(domain, Choice) and domain.grid:
            yield name, f"{name}: grid needs searcher: grid; or write choice"
    if grid and space.trials:
        yield "trials", "trials: searcher grid tries every point; leave trials out"
    if not grid and not space.trials:
        yield "searcher", "trials: is missing; say how many points are tried"


def scheduler(space: Space, base: DistillConfig) -> Wrong:
    """Each scheduler has what it needs, and nothing that it would not look at."""
    budget, name = space.budget, space.scheduler
    if name == "asha" and not budget.grace:
        yield "budget", "budget.grace: is missing; scheduler asha first judges there"
    if name != "pbt" and budget.interval:
        yield "budget", f"budget.interval: scheduler {name} has none; leave it out"
    if name == "none" and budget.grace:
        yield "budget", "budget.grace: scheduler none never stops a trial"
    if name == "pbt":
        yield from population(space)


def population(space: Space) -> Wrong:
    """What population based training can change while trials run."""
    budget, whole = space.budget, space.trials * space.budget.images
    if not budget.interval:
        yield "budget", "budget.interval: is missing; scheduler pbt needs it"
    if space.searcher != "random":
        yield "searcher", f"searcher {space.searcher}: scheduler pbt needs random"
    if len(space.seeds) > 1:
        text = "pbt changes settings on the way, none are left to repeat; name one seed"
        yield "seeds", f"seeds: {text}"
    if 0 < budget.total < whole:
        text = f"a population sees {whole:,} images as a whole; leave it out"
        yield "budget", f"budget.total: {text}"
    if space.trials < 4:
        yield "trials", "trials: pbt is a population; at least 4 are needed"
    for parameter in space.parameters:
        name = parameter.name
        if parameter.when or parameter.key != name or name in (STRATEGY, SCALE):
            yield name, f"{name}: scheduler pbt varies every field in every trial"
        if name.startswith("teacher.") or name == "objective.name":
            yield name, f"{name}: pbt cannot change it while a trial runs"
        if name.startswith("adapter."):
            text = "a trial goes on from another's adapters, which have theirs"
            yield name, f"{name}: pbt cannot change it while a trial runs: {text}"


def guidance(space: Space, base: DistillConfig) -> Wrong:
    """guidance.* sets all four scales, and needs both of its parts."""
    named = {*space.names, *space.fixed}
    if SCALE in named and STRATEGY not in named:
        yield SCALE, f"{SCALE} without {STRATEGY}: name a strategy"
    for kappa in KAPPAS:
        if STRATEGY in named and kappa in named:
            yield kappa, f"{kappa}: {STRATEGY} sets it already; leave one out"


def possible(space: Space, base: DistillConfig, name: str) -> tuple[Value, ...]:
    """Every value that a field may have in some trial; empty for a range."""
    domains = [p.domain for p in space.parameters if p.name == name]
    if any(isinstance(domain, Range) for domain in domains):
        return ()
    found = [v for d in domains if isinstance(d, Choice) for v in d.values]
    always = any(p.name == name and not p.when for p in space.parameters)
    own = None if always else known_values(space, base).get(name)
    return tuple(found if own is None else [*found, own])


def effects(space: Space, base: DistillConfig) -> Wrong:
    """No field does nothing in every trial."""
    needed = needs()
    for name in space.names:
        other, values = needed.get(name, ("", ()))
        there = possible(space, base, other)
        if other and not set(there) & set(values):
            found, wanted = ", ".join(map(str, there)), " or ".join(values)
            yield name, f"{name} has no effect: {other} is {found}; it needs {wanted}"


def check_conditions(space: Space, base: DistillConfig) -> Wrong:
    """Each holds in some trial."""
    for parameter in space.parameters:
        for condition in parameter.when:
            there = possible(space, base, condition.name)
            if not set(there) & set(condition.values):
                when = f"when {condition.name} is {' or '.join(map(str, condition.values))}"
                found = ", ".join(map(str, there)) or "not set"
                yield parameter.line, f"{parameter.name}: {when} never holds: it is {found}"


def scores(space: Space, base: DistillConfig) -> Wrong:
    """Every trial has each of them."""
    known = known_values(space, base)
    measured, network = known["evaluation.metrics"], known["evaluation.feature_space"]
    if not known["evaluation.every"] or not network:
        text = f"trials of {base.recipe or 'this config'} have no scores: put"
        yield "metric", f"metric: {text} evaluation.feature_space and evaluation.every under fields"
    for name in (metric.name for metric in space.metrics):
        spec = measured_by(name)
        if spec and spec.name not in asked_metrics(measured):
            text = f"put evaluation.metrics: {measured},{spec.name} under fields"
            yield "metric", f"metric {name}: evaluation.metrics is {measured}; {text}"
        if spec and score_of(name).of_space and space_of(name).lower() != network:
            text = f"is measured in {space_of(name)}, but evaluation.feature_space is {network}"
            yield "metric", f"metric {name} {text}"


def pairs(space: Space, base: DistillConfig) -> Wrong:
    """No combination of two fields' ends or choices is one that no run could have."""
    seen = set()
    for corner in corners(space):
        point = chosen_point(space, base, corner)
        if (which := tuple(point.items())) in seen:
            continue
        seen.add(which)
        try:
            config_of(space, base, point)
        except UserError as error:
            shown = ", ".join(f"{name}: {value}" for name, value in point.items())
            yield named_in(space, str(error)), f"{error} (with {shown})"


def ends_of_range(parameter: Parameter) -> tuple[Value, ...]:
    domain = parameter.domain
    if isinstance(domain, Choice):
        return domain.values
    return (domain.low, domain.clamped(domain.high))


def corners(space: Space) -> Iterator[Mapping[str, Value]]:
    """All pairs of two parameters' ends, the others at their first; then the last ends of all."""
    each = {parameter.key: ends_of_range(parameter) for parameter in space.parameters}
    first = {key: values[0] for key, values in each.items()}
    yield first
    for one, other in itertools.combinations(each, 2):
        for pair in itertools.product(each[one], each[other]):
            yield first | dict(zip((one, other), pair, strict=True))
    yield {key: values[-1] for key, values in each.items()}


def named_in(space: Space, text: str) -> str:
    """The field of the space that a refusal speaks of; 'fields' where none is named."""
    names = (*space.names, *space.fixed)
    spoken = next((name for name in names if name in text), "")

    def words(name: str) -> int:
        return sum(word in text for word in name.split(".")[1].split("_"))

    likely = max(names, key=words)
    fallback = STRATEGY if STRATEGY in names and "guidance" in text else "fields"
    return spoken or (likely if words(likely) else fallback)
