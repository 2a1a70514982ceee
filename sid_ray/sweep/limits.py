"""Which fields of a config a sweep may vary, their types, and whom they have an effect on."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.registry import noises
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

OF_SIDA = (
    "objective.adversarial_weight",
    "objective.discriminator_weight",
    "objective.generator_start",
    "objective.adversarial_start",
)


@cache
def needs() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Field -> (other field, its values) for fields that do nothing at any other value."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {
        **dict.fromkeys(OF_SIDA, ("objective.name", ("sida",))),
        **dict.fromkeys(
            (*KAPPAS, STRATEGY, SCALE, "objective.text_dropout"), ("objective.name", ("lsg", "vsd"))
        ),
    }
    for kind, noise in noises().items():
        for name in (f"schedule.{field}" for field in noise.fields):
            found[name] = "schedule.kind", (*found.get(name, ("", ()))[1], kind)
    return found


@cache
def field_types() -> dict[str, Any]:
    """Every name that a space may speak of, with its type: bool, int, float, str or a Literal."""
    types: dict[str, Any] = {}
    for section, kind in get_type_hints(DistillConfig).items():
        if dataclasses.is_dataclass(kind):
            hints = get_type_hints(kind)
            types |= {f"{section}.{f.name}": hints[f.name] for f in dataclasses.fields(kind)}
        else:
            types[section] = kind
    names: Any = tuple(GUIDANCE)
    return {**types, STRATEGY: Literal[names], SCALE: float}


def why_not_varied(name: str) -> str:
    """Why a field may not vary, and what to do; empty where it may."""
    if name in NOT_VARIED:
        return NOT_VARIED[name]
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
