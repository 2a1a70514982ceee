"""``ObjectiveSpec``: all that the house asks of an objective, whoever wrote it.

An objective is one file: its loss, the dataclass of its own config fields, and its spec.

    @dataclass(frozen=True, kw_only=True)
    class ToyConfig(ObjectiveConfig):
        strength: float = 0.5
        \"\"\"Explained in --help.\"\"\"

    def toy_loss(chosen, schedule, null_text): ...

    TOY = ObjectiveSpec("toy", "Toy", "a toy", toy_loss, config=ToyConfig)

An entry point of the group sid_ray.objectives, or ``register_objective(TOY)``, makes it known. Its
fields are then --objective.strength, "strength" in the config's JSON, and part of a run's identity.
This file loads no torch; a spec that ships loads its loss when it is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sid_ray.config.registry import OBJECTIVES
from sid_ray.config.sections import ObjectiveConfig

if TYPE_CHECKING:
    from torch import Tensor

    from sid_ray.types import Objective, Schedule

Need = Literal["real images", "text", "log-variance head", "several steps"]
Build = Callable[[Any, "Schedule", "Tensor | None"], "Objective"]


def alpha_of(chosen: ObjectiveConfig) -> str:
    """``variant`` of the objectives whose variants differ in alpha."""
    return f"alpha {chosen.alpha:g}"


def nothing(chosen: ObjectiveConfig) -> dict[str, str]:
    """``settings`` of an objective without any of its own."""
    return {}


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective.

    Args:
        name: its name in configs.
        label: in tables and on pages: SiD-LSG.
        title: in model cards, some words.
        build: (config's section, noise schedule, empty prompt's embedding [T, D] or None) -> loss.
        config: the section's dataclass where it has fields of its own: a subclass of
            ObjectiveConfig.
        fields: of ObjectiveConfig, those that do nothing but in objectives which name them here.
        needs: what a run must have.
        discriminator: whether the fake score judges real images too, and so trains its encoder.
        variant: what tells runs of one recipe table apart, at most 11 characters.
        settings: of the section, what a model card says beside alpha, by its words.
        not_varied: own fields that a sweep may not vary, and why.
    """

    name: str
    label: str
    title: str
    build: Build
    config: type[ObjectiveConfig] = ObjectiveConfig
    fields: tuple[str, ...] = ()
    needs: frozenset[Need] = frozenset()
    discriminator: bool = False
    variant: Callable[[Any], str] = alpha_of
    settings: Callable[[Any], Mapping[str, str]] = nothing
    not_varied: Mapping[str, str] = field(default_factory=dict)

    @property
    def reads_images(self) -> bool:
        """Whether its loss reads real images."""
        return "real images" in self.needs

    @property
    def own_fields(self) -> tuple[str, ...]:
        """Fields that do nothing but in some objectives, of which this is one."""
        common = {each.name for each in dataclasses.fields(ObjectiveConfig)}
        own = (each.name for each in dataclasses.fields(self.config) if each.name not in common)
        return (*self.fields, *own)


def objective_spec(name: str) -> ObjectiveSpec:
    """The spec of an objective. Raises UserError for an unknown one."""
    return OBJECTIVES.get(name)


def objective_specs() -> tuple[ObjectiveSpec, ...]:
    """All of them. Raises UserError where one cannot be loaded."""
    return OBJECTIVES.specs


def register_objective(spec: ObjectiveSpec) -> None:
    """Makes an objective known in this process; for Ray's workers it takes an entry point.

    Raises UserError where another one has its name.
    """
    OBJECTIVES.register(spec)
