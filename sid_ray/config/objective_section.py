"""The section ``objective`` of a config: common fields, and those of the objective it names.

An objective with fields of its own has a subclass of ObjectiveConfig for them. The section's class
follows from its name alone, whoever made it: a recipe, a flag, JSON or Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sid_ray.config.registry import OBJECTIVES
from sid_ray.config.sections import ObjectiveConfig
from sid_ray.errors import UserError


def of_its_name(section: ObjectiveConfig) -> ObjectiveConfig:
    """The section as the dataclass of the objective that it names; as it is for an unknown one.

    Values of fields that the class lacks are left behind, those that only it has are its defaults.
    """
    spec = OBJECTIVES.find(section.name)
    if spec is None or type(section) is spec.config:
        return section
    names = {each.name for each in dataclasses.fields(spec.config)}
    values = {each.name: getattr(section, each.name) for each in dataclasses.fields(section)}
    return spec.config(**{name: value for name, value in values.items() if name in names})


def take_own(values: Any) -> dict[str, Any]:
    """Takes out of a config's JSON the objective's fields that ObjectiveConfig has not."""
    section = values.get("objective") if isinstance(values, dict) else None
    if not isinstance(section, dict):
        return {}
    common = {each.name for each in dataclasses.fields(ObjectiveConfig)}
    return {name: section.pop(name) for name in list(section) if name not in common}


def with_own(section: ObjectiveConfig, own: Mapping[str, Any], source: str) -> ObjectiveConfig:
    """The section with an objective's own fields from JSON.

    Raises UserError that names the first wrong field, or for an objective that is not known here.
    """
    try:
        kind = OBJECTIVES.get(section.name).config
        return TypeAdapter[ObjectiveConfig](kind).validate_python(
            dataclasses.asdict(section) | dict(own)
        )
    except UserError as error:
        raise UserError(f"{source}: objective.name: {error}") from None
    except ValidationError as error:
        raise UserError(f"{source}: objective.{first_of(error)}") from None


def first_of(error: ValidationError) -> str:
    """The first of pydantic's complaints: field, what is wrong, what was found."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "its text"
    return f"{where}: {first['msg'].lower()} (found {first.get('input')!r:.60})"


def own_fields() -> dict[str, Any]:
    """'objective.NAME' -> default of each field that only some objective's section has."""
    common = {each.name for each in dataclasses.fields(ObjectiveConfig)}
    found: dict[str, Any] = {}
    for spec in OBJECTIVES.specs:
        section = spec.config()
        for each in dataclasses.fields(section):
            if each.name not in common:
                found[f"objective.{each.name}"] = getattr(section, each.name)
    return found
