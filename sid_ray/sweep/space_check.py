"""A search space held against the recipe that it varies, before anything starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from sid_ray.config.distill_config import DistillConfig, asked_metrics
from sid_ray.errors import UserError
from sid_ray.metrics.names import measured_by, score_of, space_of
from sid_ray.sweep.limits import needs
from sid_ray.sweep.space import (
    KAPPAS,
    SCALE,
    STRATEGY,
    Choice,
    Parameter,
    Range,
    Space,
    Value,
    chosen,
    config_of,
    known_values,
)


def check_space(space: Space, base: DistillConfig) -> Space:
    """Itself, when it can be run on a recipe. Raises UserError in one line."""
    check_searcher(space)
    check_budget(space)
    check_population(space)
    check_guidance(space, base)
    check_effects(space, base)
    check_conditions(space, base)
    check_scores(space, base)
    check_corners(space, base)
    return space


def check_searcher(space: Space) -> None:
    """A grid has values only, and all of them are tried."""
    for parameter in space.parameters:
        if space.searcher == "grid" and isinstance(parameter.domain, Range):
            raise space.error(
                parameter.name, f"{parameter.name}: searcher grid needs choice or grid, not a range"
            )
        grid = isinstance(parameter.domain, Choice) and parameter.domain.grid
        if space.searcher != "grid" and grid:
            raise space.error(
                parameter.name, f"{parameter.name}: grid needs searcher: grid; or write choice"
            )
    if space.searcher == "grid" and space.trials:
        raise space.error("trials", "trials: searcher grid tries every point; leave trials out")
    if space.searcher != "grid" and not space.trials:
        raise space.error("searcher", "trials: is missing; say how many points are tried")


def check_budget(space: Space) -> None:
    """Each scheduler has what it needs, and nothing that it would not look at."""
    budget, name = space.budget, space.scheduler
    if name == "asha" and not budget.grace:
        raise space.error("budget", "budget.grace: is missing; scheduler asha first judges there")
    if name in ("pbt", "pb2") and not budget.interval:
        raise space.error("budget", f"budget.interval: is missing; scheduler {name} needs it")
    if name in ("none", "asha") and budget.interval:
        raise space.error("budget", f"budget.interval: scheduler {name} has none; leave it out")
    if name == "none" and budget.grace:
        raise space.error("budget", "budget.grace: scheduler none never stops a trial")


def check_population(space: Space) -> None:
    """What Ray's population based schedulers can change while trials run."""
    name = space.scheduler
    if name not in ("pbt", "pb2"):
        return
    if space.searcher != "random":
        raise space.error("searcher", f"searcher {space.searcher}: scheduler {name} needs random")
    if len(space.seeds) > 1:
        raise space.error(
            "seeds",
            f"seeds: {name} changes settings on the way, none are left to repeat; name one seed",
        )
    whole = space.trials * space.budget.images
    if space.budget.total and space.budget.total < whole:
        raise space.error(
            "budget", f"budget.total: a population sees {whole:,} images as a whole; leave it out"
        )
    if space.trials < 4:
        raise space.error("trials", f"trials: {name} is a population; at least 4 are needed")
    for parameter in space.parameters:
        field, domain = parameter.name, parameter.domain
        if parameter.when or parameter.key != field or field in (STRATEGY, SCALE):
            raise space.error(field, f"{field}: scheduler {name} varies every field in every trial")
        if field.startswith("teacher.") or field == "objective.name":
            raise space.error(field, f"{field}: {name} cannot change it while a trial runs")
        if name == "pb2" and (not isinstance(domain, Range) or domain.integer or domain.step):
            raise space.error(field, f"{field}: scheduler pb2 needs uniform or loguniform numbers")


def check_guidance(space: Space, base: DistillConfig) -> None:
    """guidance.* sets all four scales, and needs both of its parts."""
    named = {*space.names, *space.fixed}
    if not named & {STRATEGY, SCALE}:
        return
    first = STRATEGY if STRATEGY in named else SCALE
    if STRATEGY not in named:
        raise space.error(first, f"{SCALE} without {STRATEGY}: name a strategy")
    for kappa in KAPPAS:
        if kappa in named:
            raise space.error(kappa, f"{kappa}: {STRATEGY} sets it already; leave one out")


def possible(space: Space, base: DistillConfig, name: str) -> tuple[Value, ...]:
    """Every value that a field may have in some trial; empty for a range."""
    domains = [p.domain for p in space.parameters if p.name == name]
    if any(isinstance(domain, Range) for domain in domains):
        return ()
    found = [v for d in domains if isinstance(d, Choice) for v in d.values]
    always = any(p.name == name and not p.when for p in space.parameters)
    if not always:
        own = known_values(space, base).get(name)
        found += [] if own is None else [own]
    return tuple(found)


def check_effects(space: Space, base: DistillConfig) -> None:
    """Raises UserError for a field that does nothing in any trial."""
    needed = needs()
    for name in space.names:
        if name not in needed:
            continue
        other, values = needed[name]
        there = possible(space, base, other)
        if not set(there) & set(values):
            found = ", ".join(map(str, there))
            raise space.error(
                name, f"{name} has no effect: {other} is {found}; it needs {' or '.join(values)}"
            )


def check_conditions(space: Space, base: DistillConfig) -> None:
    """Raises UserError for a condition that holds in no trial."""
    for parameter in space.parameters:
        for condition in parameter.when:
            there = possible(space, base, condition.name)
            if not set(there) & set(condition.values):
                wanted = " or ".join(map(str, condition.values))
                found = ", ".join(map(str, there)) or "not set"
                raise UserError(
                    f"{space.source}:{parameter.line}: {parameter.name}: when {condition.name} is "
                    f"{wanted} never holds: it is {found}"
                )


def check_scores(space: Space, base: DistillConfig) -> None:
    """Raises UserError where trials would not have a score."""
    known = known_values(space, base)
    if not known["evaluation.every"] or not known["evaluation.feature_space"]:
        raise space.error(
            "metric",
            f"metric: trials of {base.recipe or 'this config'} have no scores: put "
            "evaluation.feature_space and evaluation.every under fields",
        )
    measured, network = known["evaluation.metrics"], known["evaluation.feature_space"]
    for metric in space.metrics:
        spec = measured_by(metric.name)
        if spec is None:
            continue
        if spec.name not in asked_metrics(measured):
            raise space.error(
                "metric",
                f"metric {metric.name}: evaluation.metrics is {measured}; put "
                f"evaluation.metrics: {measured},{spec.name} under fields",
            )
        if score_of(metric.name).of_space and space_of(metric.name).lower() != network:
            raise space.error(
                "metric",
                f"metric {metric.name} is measured in {space_of(metric.name)}, but "
                f"evaluation.feature_space is {network}",
            )


def check_corners(space: Space, base: DistillConfig) -> None:
    """Raises UserError for a combination of two fields' ends or choices that no run could have."""
    seen = set()
    for corner in corners(space):
        point = chosen(space, base, corner)
        if (which := tuple(point.items())) in seen:
            continue
        seen.add(which)
        try:
            config_of(space, base, point)
        except UserError as error:
            shown = ", ".join(f"{name}: {value}" for name, value in point.items())
            raise space.error(named_in(space, str(error)), f"{error} (with {shown})") from None


def ends(parameter: Parameter) -> tuple[Value, ...]:
    domain = parameter.domain
    if isinstance(domain, Choice):
        return domain.values
    return (domain.low, domain.clamped(domain.high))


def corners(space: Space) -> Iterator[Mapping[str, Value]]:
    """All pairs of two parameters' ends, the others at their first; then the last ends of all."""
    each = {parameter.key: ends(parameter) for parameter in space.parameters}
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
