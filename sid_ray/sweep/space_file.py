"""tune_spaces/*.yaml -> Space. What is wrong is one line with the file, the line and what to do.

recipe: digits-sida                  optional; --recipe names another
metric: FD-digits-cnn                a score, or {name: SCORE, direction: min}, or a list of both
budget: {images: 30_000, grace: 3_000, reduction: 3}
scheduler: asha                      none, asha or pbt
searcher: optuna                     random, optuna or grid
trials: 16
seeds: [0, 1, 2]
fields:
  objective.alpha: {uniform: [0.8, 1.4]}
  training.group_size: {choice: [16, 32]}
  objective.adversarial_weight: {loguniform: [1e-3, 1e-1], when: {objective.name: sida}}
  objective.logvar: false            one value: the same in all trials
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, ValidationError, create_model

from sid_ray.config.distill_config import unknown_field
from sid_ray.errors import UserError, closest, did_you_mean, nearest
from sid_ray.metrics.names import is_score, larger_is_better, measured_by
from sid_ray.storage import text_lines
from sid_ray.sweep.fields import (
    FieldTypes,
    StrictModel,
    domain_of,
    each_once,
    expected_of,
    field_types,
    fields_model,
    in_list,
    there_are,
)
from sid_ray.sweep.space import (
    FieldCondition,
    Metric,
    Parameter,
    Range,
    Scheduler,
    Searcher,
    Space,
    SweepBudget,
    Value,
    said,
    whole_number,
)
from sid_ray.sweep.yaml_lines import Document, read_yaml

MISSING = "is missing"


def direction_of(name: str) -> str:
    """Which way a known score is better; empty for any other name."""
    if measured_by(name) is None or not is_score(name):
        return ""
    return "max" if larger_is_better(name) else "min"


@BeforeValidator
def with_direction(told: Any) -> Any:
    """A score's name, with its direction where that is known."""
    told = told if isinstance(told, dict) else {"name": told}
    name = told.get("name", "unnamed")
    if not isinstance(name, str) or not name:
        raise said(f": expected a score's name, like FID, found {name!r}")
    if "direction" in told or "name" not in told:
        return told
    if not direction_of(name):
        raise said(f" {name}: say which way is better: {{name: {name}, direction: min}} or max")
    return {**told, "direction": direction_of(name)}


class SpaceHead(StrictModel):
    """All but ``fields:``."""

    recipe: str | None = None
    metric: Annotated[
        list[Annotated[Metric, with_direction]], Field(min_length=1), in_list, each_once
    ]
    budget: SweepBudget
    scheduler: Scheduler = "none"
    searcher: Searcher = "random"
    trials: Annotated[int, whole_number(1)] = 0
    seeds: Annotated[
        list[Annotated[int, whole_number(0)]], Field(min_length=1), in_list, each_once
    ] = Field([0])


@cache
def space_model(types: FieldTypes) -> type[SpaceHead]:
    """A whole file, of fields of these types."""
    return create_model("Space", __base__=SpaceHead, fields=(fields_model(types), ...))


def read_space_text(path: Path) -> str:
    """A file's text. Raises UserError in one line."""
    try:
        return text_lines.read_text(path)
    except UserError as error:
        raise UserError(f"{error}; name a search space, like tune_spaces/*.yaml") from None


def parse_space(text: str, source: str) -> Space:
    """The space of a file's text. Raises UserError in one line that names ``source``."""
    document = read_yaml(text, source)
    try:
        found: Any = space_model(tuple(field_types().items())).model_validate(document.values)
    except ValidationError as error:
        told = [words_of_error(document, one) for one in error.errors(include_url=False)]
        # The first in the file; of a line first what is there, at the end what is missing.
        raise document.error(*min(told, key=lambda o: (o[0] or 1e9, MISSING in o[1]))) from None
    parameters, fixed = parameters_of(document, found.fields)
    top = {name: document.line((name,)) for name in document.values}
    return Space(
        source=source,
        metrics=tuple(found.metric),
        budget=found.budget,
        parameters=parameters,
        fixed=fixed,
        scheduler=found.scheduler,
        searcher=found.searcher,
        trials=found.trials,
        seeds=tuple(found.seeds),
        recipe=found.recipe or "",
        lines=top | {n: document.line(("fields", n)) for n in document.values["fields"]},
    )


def parameters_of(
    document: Document, fields: Any
) -> tuple[tuple[Parameter, ...], dict[str, Value]]:
    """What varies, and what has one value. Raises UserError for conditions that cannot be."""
    parameters: list[Parameter] = []
    fixed: dict[str, Value] = {}
    for name, written in document.values["fields"].items():
        value = getattr(fields, name)
        if not isinstance(value, list):
            fixed[name] = value
            continue
        for number, case in enumerate(value):
            place = ("fields", name, *([number] if isinstance(written, list) else []))
            when = (written[number] if isinstance(written, list) else written).get("when") or ()
            conditions = tuple(
                FieldCondition(other, tuple(getattr(case.when, other))) for other in when
            )
            key = f"{name}[{number}]" if number else name
            domain = domain_of(case, field_types()[name] is int)
            parameters.append(Parameter(key, name, domain, conditions, document.line(place)))
    if not parameters:
        line = document.line(("fields",)) + 1
        raise document.error(
            line, "fields: nothing varies; give at least one field a range or choice"
        )
    check_order(document, parameters)
    return tuple(parameters), fixed


def check_order(document: Document, parameters: list[Parameter]) -> None:
    """Raises UserError where a condition speaks of its own or a later field, or of a range."""
    before: dict[str, list[Parameter]] = {}
    varied = {parameter.name for parameter in parameters}
    for parameter in parameters:
        for other in (condition.name for condition in parameter.when):
            if other == parameter.name:
                text = f"when speaks of {other} itself"
            elif other in varied and other not in before:
                text = f"when speaks of {other}: put that field above"
            elif any(isinstance(one.domain, Range) for one in before.get(other, ())):
                text = (
                    f"when {other} has a value, but that varies over a range; a condition needs a "
                    "choice"
                )
            else:
                continue
            raise document.error(parameter.line, f"{parameter.name}: {text}")
        before.setdefault(parameter.name, []).append(parameter)


# What is wrong, in words --------------------------------------------------------------------------


def words_of_error(document: Document, error: Any) -> tuple[int, str]:
    """One of pydantic's errors: the line (0 for the file as a whole), and what it says there."""
    place, kind, value = document.path(error["loc"]), error["type"], error["input"]
    names = [name for name in place if isinstance(name, str)]
    # A field is called by its name alone, what stands in its case by both.
    what = next((n for n in reversed(names) if n in field_types()), "") or ".".join(names)
    at = f"{what}: {names[-1]}" if names and what not in (names[-1], ".".join(names)) else what
    expected: Any = field_types().get(what, str)
    if kind == "said":
        text = at + error["msg"]
    elif kind == "missing":
        text = f"{'.'.join([*names, str(error['loc'][-1])])}: {MISSING}"
        if not place:
            return 0, f"{text}; a search space needs it"
    elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
        text = unknown_key(names)
    elif kind.endswith(("model_type", "dataclass_type")):
        text = f"{at}: expected names with values"
    elif kind == "list_type":
        text = f"{at}: expected a list, like [1, 2]"
    elif kind == "too_short":
        text = f"{at} is empty; give at least one value"
    elif isinstance(value, list | dict):
        text = f"{at}: expected one value"
    elif kind == "literal_error" and what in WORDS:
        text = f"{what}: no {value!r}.{nearest(str(value), WORDS[what]) or there_are(WORDS[what])}"
    else:
        hint = did_you_mean(closest(value, get_args(expected))) if isinstance(value, str) else ""
        text = f"{what} is {value!r}; expected {expected_of(expected)}.{hint}".rstrip(".")
    return document.line(place), text


WORDS = {
    "": (*SpaceHead.model_fields, "fields"),
    "budget": tuple(one.name for one in dataclasses.fields(SweepBudget)),
    "metric": tuple(one.name for one in dataclasses.fields(Metric)),
    "metric.direction": ("min", "max"),
    "scheduler": get_args(Scheduler),
    "searcher": get_args(Searcher),
}


def unknown_key(names: list[str]) -> str:
    """The last name, which stands where there is none such."""
    *owners, name = names
    if owners[:1] == ["fields"]:
        near = closest(name, field_types())
        found = f"no field {name!r} in the config.{did_you_mean(near)}"
        return found if near else str(unknown_field(name))
    known = WORDS[".".join(owners)]
    where = ".".join(owners) or "a search space"
    return f"{where} has no {name!r}.{nearest(name, known) or there_are(known)}"
