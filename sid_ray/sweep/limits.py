"""Which fields of a config a sweep may vary, their types, and whom they have an effect on."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.registry import noises
from sid_ray.objectives.spec import objective_specs
from sid_ray.recipes.registry import GUIDANCE
from sid_ray.sweep.space import KAPPAS, SCALE, STRATEGY

VARIED_SECTIONS = ("objective", "schedule", "training", "teacher", "guidance")

# Why not, and what to do instead; the longest name that fits counts.
NOT_VARIED = {
    "recipe": "name the recipe with recipe: or --recipe",
    "teacher.source": "scores of different teachers do not compare: run a sweep for each",
    "schedule.kind": "it is the teacher's",
    "schedule.beta_schedule": "it is the teacher's",
    "schedule.beta_start": "it is the teacher's",
    "schedule.beta_end": "it is the teacher's",
    "schedule.num_train_timesteps": "it is the teacher's",
    "schedule.prediction_type": "it is the teacher's",
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
    for section, kind in get_type_hints(DistillConfig).items():
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


def converted(kind: Any, value: Any) -> Any:
    """The value as a field of this type holds it. Raises ValueError where it cannot."""
    if get_origin(kind) is Literal:
        if value in get_args(kind) and not isinstance(value, bool):
            return value
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) is kind:
        return value
    raise ValueError(expected_of(kind))
