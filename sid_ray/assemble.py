"""From a config to the objects it describes."""

from __future__ import annotations

from dataclasses import asdict

from sid_ray.config import DistillConfig
from sid_ray.objectives.sid import SiD
from sid_ray.schedules import EDMSchedule
from sid_ray.types import Objective
from sid_ray.weights.folder import ModelDescription


def schedule_of(config: DistillConfig) -> EDMSchedule:
    """The noise schedule; the config's fields are the schedule's arguments."""
    return EDMSchedule(**asdict(config.schedule))


def objective_of(config: DistillConfig) -> Objective:
    """The losses."""
    values = asdict(config.objective)
    kinds = {"sid": SiD}
    return kinds[values.pop("name")](schedule_of(config), **values)


def generator_description(config: DistillConfig, teacher: ModelDescription) -> ModelDescription:
    """What the generator's folder says: the teacher's network, read in one step."""
    notes = {"recipe": config.recipe, "teacher": config.teacher.source, "data": config.data.name}
    one_step = {"sigma": config.schedule.init_sigma}
    return ModelDescription(teacher.family, teacher.network, one_step, notes)
