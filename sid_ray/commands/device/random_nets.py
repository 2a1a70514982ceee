"""What checks of speed and memory measure: recipes, and networks with random weights.

Nothing is fetched: the published networks are known by their addresses. Where a CPU stands for
GPUs, what ships takes their place.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from sid_ray.actors.build import build_networks
from sid_ray.commands.benching.made_up import RandomSamples, random_teacher
from sid_ray.commands.benching.rank import NO_RUN
from sid_ray.commands.benching.short import short_of
from sid_ray.commands.device.rows import Rig
from sid_ray.commands.device.short_run import ShortRun, run_of
from sid_ray.config.distill_config import DistillConfig, replace, with_plain_resources
from sid_ray.denoisers.registry import family_of
from sid_ray.planning.choose import choose_resources
from sid_ray.planning.machine import Machine
from sid_ray.planning.memory import GIB
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import Data
from sid_ray.weights.description import ModelDescription


class Sized(NamedTuple):
    """A recipe, and what stands for it on a CPU."""

    recipe: str
    small: str = "digits-sid"

    def on(self, rig: Rig, micro_batch: int = 0) -> DistillConfig:
        """The config on one of the rig's GPUs, by the plainest settings."""
        config = with_plain_resources(recipe(self.small if rig.small else self.recipe))
        return replace(config, resources__use_gpu=not rig.small, resources__micro_batch=micro_batch)

    def chosen(self, rig: Rig, workers: int) -> DistillConfig:
        """The config on so many GPUs, as a run would choose it: stage, micro-batch and all.

        Raises UserError where it does not fit.
        """
        config = replace(
            recipe(self.small if rig.small else self.recipe), resources__num_workers=workers
        )
        machine = Machine.alike(1, 0 if rig.small else workers, rig.memory / GIB)
        return choose_resources(config, teacher_of(config), machine).config


def random_run(config: DistillConfig, device: torch.device) -> ShortRun:
    """A short iteration (benching/short.py) of a config on one device, with random weights."""
    short, description = short_of(config, 1).config, teacher_of(config)
    built = build_networks(short, NO_RUN, 1, device, (random_teacher(description), description))
    samples = RandomSamples(short, built.description)
    text = text_shape(built.description)
    null_text = torch.zeros(text, device=device) if text else None
    data = Data(samples, null_text)  # type: ignore[arg-type]
    return run_of(short, built.trainee, built.roles, data, device, 1, 0)


def text_shape(description: ModelDescription) -> tuple[int, int] | None:
    return family_of(description.family).text_shape(description.network)


def without_dropout(description: ModelDescription) -> ModelDescription:
    """The same network as it is used after training."""
    network = family_of(description.family).with_dropout(description.network, 0.0)
    return dataclasses.replace(description, network=network or description.network)
