"""A recipe in one process of plain torch: the numbers of any set of workers, without Ray."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sid_ray.actors.build import TRAINED
from sid_ray.checkpoint.snapshot import write_average
from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.adapters import start_adapter, with_adapter
from sid_ray.distributed.ema import ema_beta
from sid_ray.distributed.roles import TorchRole, Trainee
from sid_ray.evaluation.judge import Judge, seed_blocks
from sid_ray.evaluation.samplers import generator_sampler
from sid_ray.training.adapter_settings import run_adapter
from sid_ray.training.assemble import (
    adam_of,
    data_of,
    find_start,
    generator_description,
    objective_of,
    rules_of,
    schedule_of,
)
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.weights.folder import load_model


def plain_trainee(config: DistillConfig, teacher: nn.Module, family: str) -> Trainee:
    """The three roles in plain torch, all with the frozen teacher's weights, float32."""
    rules = rules_of(config, family)

    adapter = run_adapter(config, family)

    def network(name: str) -> nn.Module:
        if adapter is None or not config.adapter.of(name):
            return copy.deepcopy(teacher)
        tree = with_adapter(teacher, adapter)
        start_adapter(tree, config.training.seed, TRAINED.index(name))
        return tree

    fake_score, generator = (
        TorchRole(network(name), adam_of(config, name), rules[name])
        for name in ("fake_score", "generator")
    )
    return Trainee(teacher, fake_score, generator, network("generator"))


class OneProcess:
    """A run in this process: no checkpoints, scored as a run's evaluator scores.

    Args:
        half_lives: of further averages of the same generator, in images. An average changes no
            training, so one run stands for a run with each of them.
    """

    def __init__(self, config: DistillConfig, half_lives: Sequence[float] = ()):
        torch.set_num_threads(1)
        training, start = config.training, find_start(config)
        teacher, description = load_model(start.teacher)
        self.config, self.description = config, start.description
        data, schedule = data_of(config, description, start.components), schedule_of(config)
        steps = config.objective.num_steps
        self.judge = Judge(config.evaluation, data.source, num_steps=steps)
        self.trainee = plain_trainee(config, teacher, description.family)
        self.plan, self.objective = config.group_plan(1), objective_of(config, data.null_text)
        self.settings = StepSettings(self.plan, 0, training.ema_half_life, training.ema_rampup)
        self.draws = draws_of(
            data.source, self.plan, training.seed, torch.device("cpu"), self.objective.draw_spec
        )
        self.averages = {own: copy.deepcopy(self.trainee.generator_ema) for own in half_lives}
        self.sampler_of = partial(generator_sampler, schedule=schedule, num_steps=steps)

    def train_to(self, images: int) -> int:
        """Returns the images seen: a run ends after a batch."""
        trainee, settings = self.trainee, self.settings
        while (seen := trainee.images_seen) < images:
            step(trainee, self.objective, settings, self.draws, Sums())
            for half_life, average in self.averages.items():
                beta = ema_beta(seen, self.plan.batch_size, half_life, settings.ema_rampup)
                trainee.generator.average_into(average, beta)
        return trainee.images_seen

    def save(self, folder: Path) -> None:
        """Writes the averaged generator as a run's checkpoint has it."""
        description = generator_description(self.config, self.description)
        write_average(folder, self.trainee.generator_ema.state_dict(), description)

    def score(self, half_life: float | None = None) -> float:
        """Frechet distance of the averaged generator, or of a further average."""
        average = self.trainee.generator_ema if half_life is None else self.averages[half_life]
        sampler = self.sampler_of(average)
        looks = [self.judge.look(sampler, seeds) for seeds in seed_blocks(self.judge.seeds)]
        return self.judge.scores(looks)[self.judge.primary]


def distil(config: DistillConfig, columns: Sequence[int]) -> Iterator[tuple[int, float]]:
    """(images seen, the averaged generator's Frechet distance) at each of ``columns``."""
    run = OneProcess(config)
    for column in columns:
        yield run.train_to(column), run.score()
