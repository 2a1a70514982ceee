"""Which networks of a worker are adapters, and that they lie over the teacher's own tensors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sid_ray.actors.build import TRAINED, build_networks
from sid_ray.commands.benching.rank import NO_RUN
from sid_ray.config.distill_config import replace, with_plain_resources
from sid_ray.denoisers.adapter_names import is_adapters
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import find_start, generator_description
from sid_ray.types import Condition
from sid_ray.weights.base import BASE

CPU = torch.device("cpu")


@pytest.mark.parametrize("roles", ["both", "fake", "generator"])
def test_the_roles_asked_for_are_adapters_over_the_teachers_tensors(roles):
    torch.set_num_threads(1)
    config = replace(recipe("digits-sid"), adapter__rank=2, adapter__roles=roles)
    config = with_plain_resources(config)
    start = find_start(config)
    sha256 = start.description.notes[BASE]
    settings = dataclasses.replace(
        NO_RUN, teacher_folder=str(start.teacher), base_sha256=str(sha256)
    )
    built = build_networks(config, settings, 1, CPU)
    teacher = built.trainee.teacher
    base = {value.data_ptr() for value in teacher.state_dict().values()}

    x, level = torch.randn(2, 1, 8, 8), EDMSchedule().level(torch.full((2,), 2.5))
    cond = Condition(torch.eye(10)[:2])
    expected = teacher(x, level, cond).x0
    for name in TRAINED:
        module = built.roles[name].module
        held = {value.data_ptr() for value in (*module.parameters(), *module.buffers())}
        names = [name for name, _ in module.named_parameters()]
        if config.adapter.of(name):
            assert all(is_adapters(name) for name in names)
            assert held >= base, "its own are beside the teacher's"
        else:
            assert not any(is_adapters(name) for name in names)
            assert not held & base
        assert torch.equal(module(x, level, cond).x0, expected)
    said = generator_description(config, built.description)
    assert (said.adapter is not None) == (roles != "fake")
    assert said.notes[BASE] == sha256, "a resume asks for the base, whichever network lies over it"
