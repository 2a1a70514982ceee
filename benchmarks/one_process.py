"""A recipe in one process of plain torch: the numbers of any set of workers, without Ray."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from sid_ray.assemble import adam_of, data_of, find_start, objective_of, rules_of, schedule_of
from sid_ray.config import DistillConfig
from sid_ray.metrics.features import load_feature_space
from sid_ray.roles import TorchRole
from sid_ray.sampling import generator_sampler, sample_in_batches, seeded_inputs
from sid_ray.step import StepSettings, Sums, Trainee, draws_of, step
from sid_ray.weights.folder import load_model


def plain_trainee(config: DistillConfig, teacher: nn.Module, family: str) -> Trainee:
    """The three roles in plain torch, all with the frozen teacher's weights."""
    rules = rules_of(config, family)
    fake_score, generator = (
        TorchRole(copy.deepcopy(teacher), adam_of(config, name), rules[name])
        for name in ("fake_score", "generator")
    )
    return Trainee(teacher, fake_score, generator, copy.deepcopy(teacher))


def distil(config: DistillConfig, columns: Sequence[int]) -> Iterator[tuple[int, float]]:
    """(images seen, the averaged generator's Frechet distance) at each of ``columns``."""
    torch.set_num_threads(1)
    training, start = config.training, find_start(config)
    teacher, description = load_model(start.teacher)
    data, schedule = data_of(config, description, start.teacher), schedule_of(config)
    space = load_feature_space(config.evaluation.feature_space)
    num_steps = config.objective.num_steps
    inputs = seeded_inputs(data.source, range(config.evaluation.num_images), num_steps)
    trainee = plain_trainee(config, teacher, description.family)
    plan, objective = config.group_plan(world_size=1), objective_of(config, data.null_text)
    settings = StepSettings(plan, 0, training.ema_half_life, training.ema_rampup)
    draws = draws_of(data.source, plan, training.seed, torch.device("cpu"), objective.draw_spec)
    sampler = generator_sampler(trainee.generator_ema, schedule, num_steps)
    for column in columns:
        while trainee.images_seen < column:
            step(trainee, objective, settings, draws, Sums())
        yield trainee.images_seen, space.frechet_distance(sample_in_batches(sampler, inputs))
