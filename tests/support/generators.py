"""Generators that ship with no run: the built-in teachers' networks, read in one step."""

from __future__ import annotations

from pathlib import Path

from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import generator_description
from sid_ray.weights.description import save_model
from sid_ray.weights.folder import load_model
from sid_ray.weights.sources import resolve_source


def write_generator(folder: Path, of_recipe: str) -> Path:
    """The teacher of a recipe as its generator before the first step: poor images, real numbers."""
    config = recipe(of_recipe)
    network, description = load_model(resolve_source(config.teacher.source))
    save_model(folder, network.state_dict(), generator_description(config, description))
    return folder
