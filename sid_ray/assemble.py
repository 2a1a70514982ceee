"""From a config to the objects it describes."""

from __future__ import annotations

from dataclasses import asdict

from sid_ray.config import DistillConfig
from sid_ray.data.source import open_labels
from sid_ray.errors import UserError
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


def check_teacher(config: DistillConfig, teacher: ModelDescription) -> None:
    """Raises UserError where the teacher has other images or classes than the data set."""
    network, data = teacher.network, open_labels(config.data)
    channels, resolution, _ = data.shape
    found = {
        "channels": (network.get("img_channels"), channels),
        "pixels a side": (network.get("img_resolution"), resolution),
        "classes": (network.get("label_dim"), data.label_dim),
    }
    for what, (has, needs) in found.items():
        if has != needs:
            raise UserError(
                f"teacher {config.teacher.source} has {has} {what}, data set "
                f"{config.data.name!r} has {needs}: choose a teacher of this data"
            )


def generator_description(config: DistillConfig, teacher: ModelDescription) -> ModelDescription:
    """What the generator's folder says: the teacher's network, read in one step."""
    notes = {"recipe": config.recipe, "teacher": config.teacher.source, "data": config.data.name}
    one_step = {"sigma": config.schedule.init_sigma}
    return ModelDescription(teacher.family, teacher.network, one_step, notes)
