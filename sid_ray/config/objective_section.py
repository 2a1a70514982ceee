"""The section ``objective`` of a config: common fields, and those of the objective it names.

An objective with fields of its own has a subclass of ObjectiveConfig for them. The section's class
follows from its name alone, whoever made it: a recipe, a flag, JSON or Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from sid_ray.config.registry import OBJECTIVES
from sid_ray.config.sections import ObjectiveConfig
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


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


class OfItsName:
    """Beside the section's type: pydantic reads the dataclass of the objective that it names."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(read_section, handler(source))


def read_section(value: Any, read_common: Callable[[Any], ObjectiveConfig]) -> ObjectiveConfig:
    """What pydantic makes of the section: an instance, or JSON's mapping.

    Raises ValidationError for a wrong field, and ValueError for an objective that is not known.
    """
    given = isinstance(value, ObjectiveConfig)
    name = value.name if given else value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return read_common(value)
    try:
        kind = OBJECTIVES.get(name).config
    except UserError as error:
        raise ValueError(str(error)) from None
    if kind is ObjectiveConfig:
        return read_common(value)
    return adapter_of(kind).validate_python(value, strict=True if given else None)


@cache
def adapter_of(kind: type[ObjectiveConfig]) -> TypeAdapter[ObjectiveConfig]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


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
