"""``fields:`` of a search space: which fields of a config may vary or be fixed, and its model.

The pydantic model is made out of the config's own fields and their types. A field has one value,
or a case, or a list of cases; a case is one of DOMAINS, with or without ``when``.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    create_model,
)

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.registry import noises
from sid_ray.errors import nearest
from sid_ray.objectives.spec import objective_specs
from sid_ray.recipes.registry import GUIDANCE
from sid_ray.sweep.space import KAPPAS, SCALE, STRATEGY, Choice, Domain, Range, said

RANGES = {"uniform": 2, "loguniform": 2, "quniform": 3}
DOMAINS = (*RANGES, "choice", "grid")
VARIED_SECTIONS = ("objective", "schedule", "training", "teacher", "adapter", "guidance")

# Why not, and what to do instead; the longest name that fits counts.
NOT_VARIED = {
    "recipe": "name the recipe with recipe: or --recipe",
    "teacher.source": "scores of different teachers do not compare: run a sweep for each",
    "teacher.lora": "it makes another teacher, whose scores do not compare: run a sweep for each",
    "teacher.lora_scale": "it makes another teacher, whose scores do not compare: run a sweep for "
    "each",
    "teacher.resolution": "scores of different sizes do not compare: run a sweep for each",
    "schedule.kind": "it is the teacher's",
    "schedule.beta_schedule": "it is the teacher's",
    "schedule.beta_start": "it is the teacher's",
    "schedule.beta_end": "it is the teacher's",
    "schedule.num_train_timesteps": "it is the teacher's",
    "schedule.prediction_type": "it is the teacher's",
    "schedule.rescale_zero_snr": "it is the teacher's",
    "training.images": "set budget.images",
    "training.seed": "set seeds:",
    "data": "scores on different data do not compare: run a sweep for each",
    "resources": "it changes speed, never numbers: give it as --resources.FIELD",
    "evaluation": "it would change what the scores mean: give one value",
    "health": "it decides when a run is given up, not what it computes: give one value",
    "storage": "all trials share it: give it as --storage.FIELD",
    "output": "the sweep names runs and folders itself",
}
NOT_FIXED = ("recipe", "training.images", "training.seed", "output.run", "output.folder")


def needs() -> dict[str, tuple[str, tuple[str, ...]]]:
    """field -> (other field, values): what does nothing unless the other has one of the values."""
    readers: dict[str, list[str]] = {}
    for spec in objective_specs():
        for name in spec.own_fields:
            readers.setdefault(f"objective.{name}", []).append(spec.name)
    found = {name: ("objective.name", tuple(names)) for name, names in readers.items()}
    found |= {STRATEGY: found[KAPPAS[0]], SCALE: found[KAPPAS[0]]}
    for kind, noise in noises().items():
        for name in (f"schedule.{field}" for field in noise.fields):
            found[name] = "schedule.kind", (*found.get(name, ("", ()))[1], kind)
    return found


def field_types() -> dict[str, Any]:
    """Every name that a space may speak of, with its type: bool, int, float, str or a Literal."""
    types: dict[str, Any] = {}
    hints = get_type_hints(DistillConfig)
    for section in (each.name for each in dataclasses.fields(DistillConfig)):
        kind = hints[section]
        if dataclasses.is_dataclass(kind):
            types |= section_types(section, kind)
        else:
            types[section] = kind
    for spec in objective_specs():
        types |= section_types("objective", spec.config)
    objectives: Any = tuple(spec.name for spec in objective_specs())
    names: Any = tuple(GUIDANCE)
    types["objective.name"] = Literal[objectives]
    return {**types, STRATEGY: Literal[names], SCALE: float}


def section_types(section: str, kind: Any) -> dict[str, Any]:
    """'section.field' -> type of a section's dataclass."""
    hints = get_type_hints(kind)
    return {f"{section}.{field.name}": hints[field.name] for field in dataclasses.fields(kind)}


def why_not_varied(name: str) -> str:
    """Why a field may not vary, and what to do; empty where it may."""
    if name in NOT_VARIED:
        return NOT_VARIED[name]
    for spec in objective_specs():
        for own, reason in spec.not_varied.items():
            if name == f"objective.{own}":
                return reason
    section = name.split(".")[0]
    return "" if section in VARIED_SECTIONS else NOT_VARIED[section]


def expected_of(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}[kind]


# The model ----------------------------------------------------------------------------------------


class StrictModel(BaseModel):
    """Nothing is converted, and no name is overlooked."""

    model_config = ConfigDict(strict=True, extra="forbid")


@BeforeValidator
def in_list(value: Any) -> Any:
    """One value is a list of one."""
    return value if isinstance(value, list) else [value]


@AfterValidator
def each_once(values: list) -> list:
    if len(set(values)) < len(values):
        raise said(" has a value twice")
    return values


def may_stand(name: str) -> Any:
    """A check of a field: a case or cases only where it may vary, a value where it may be fixed."""

    def check(value: Any) -> Any:
        varies = isinstance(value, dict | list)
        if varies and why_not_varied(name):
            raise said(f" may not vary: {why_not_varied(name)}")
        if not varies and name in NOT_FIXED:
            raise said(f" may not stand here: {why_not_varied(name)}")
        return [value] if isinstance(value, dict) else value

    return BeforeValidator(check)


@AfterValidator
def is_range(values: list, info: ValidationInfo) -> list:
    """[low, high], with quniform [low, high, step]"""
    kind = info.field_name or ""
    if len(values) != RANGES[kind]:
        form = "[low, high, step]" if kind == "quniform" else "[low, high]"
        raise said(f" has {len(values)} values; expected {form}")
    low, high, *steps = values
    if not low < high:
        raise said(f" [{low:g}, {high:g}] is empty; low must be below high")
    if kind == "loguniform" and low <= 0:
        raise said(f" from {low:g}; it must begin above 0")
    if steps and not 0 < steps[0] <= high - low:
        raise said(f" step {steps[0]:g} must be above 0 and at most {high - low:g}")
    return values


def is_case(kind: Any) -> BeforeValidator:
    """A check of what names a case has, before they tell which member of the union it is."""

    def check(case: Any) -> Any:
        names, (domain, *more) = (*DOMAINS, "when"), (*domains_in(case), "")
        for name in case if isinstance(case, dict) else ():
            if name not in names:
                raise said(f" has no {name!r}.{nearest(name, names) or there_are(names)}")
        if not domain or len(more) > 1:
            found = len(more)
            raise said(f": expected one of {', '.join(DOMAINS)}, found {found}")
        if domain in RANGES and kind not in (int, float):
            raise said(f": {domain} needs a number, use choice: {expected_of(kind)}")
        if case.get("when") == {}:
            raise said(": when is empty")
        return case

    return BeforeValidator(check)


def domains_in(case: Any) -> list[str]:
    return [name for name in case if name in DOMAINS] if isinstance(case, dict) else []


def there_are(names: Any) -> str:
    return f" There are: {', '.join(names)}."


FieldTypes = tuple[tuple[str, Any], ...]  # field_types(), as what models are kept by


@cache
def when_model(types: FieldTypes) -> Any:
    """{objective.name: sida, objective.logvar: [true, false]}"""
    fields: dict[str, Any] = {
        name: (Annotated[list[kind], in_list, Field(min_length=1)], [])  # type: ignore[valid-type]
        for name, kind in types
    }
    return create_model("When", __base__=StrictModel, **fields)


@cache
def case_model(kind: Any, types: FieldTypes) -> Any:
    """{uniform: [0, 1], when: {objective.name: sida}} of a field of this type."""
    cases = []
    for name in DOMAINS:
        check = is_range if name in RANGES else each_once
        values: Any = Annotated[list[kind], Field(min_length=1), check]
        fields: dict[str, Any] = {name: (values, ...), "when": (when_model(types), None)}
        # With a blank, so that a path of an error has no name twice.
        cases.append(
            Annotated[create_model(name, __base__=StrictModel, **fields), Tag(f"a {name}")]
        )
    which = Discriminator(lambda case: f"a {domains_in(case)[0]}")
    return Annotated[Union[tuple(cases)], which, is_case(kind)]  # noqa: UP007


@cache
def fields_model(types: FieldTypes) -> type[StrictModel]:
    """All fields of a config, each with one value or a list of cases; unset where not named."""
    fields: dict[str, Any] = {}
    for name, kind in types:
        cases: Any = list[case_model(kind, types)]  # type: ignore[misc]
        both: Any = Annotated[kind, Tag("value")] | Annotated[cases, Tag("cases")]
        which = Discriminator(lambda value: "cases" if isinstance(value, list) else "value")
        fields[name] = (Annotated[both, which, may_stand(name)], None)
    return create_model("Fields", __base__=StrictModel, **fields)


def domain_of(case: Any, integer: bool) -> Domain:
    """What a case of the model draws from."""
    name = type(case).__name__
    values = getattr(case, name)
    if name not in RANGES:
        return Choice(tuple(values), grid=name == "grid")
    low, high, *steps = values
    return Range(low, high, name == "loguniform", steps[0] if steps else 0.0, integer)
