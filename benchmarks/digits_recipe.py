"""What was tried for the recipe digits-sid: Frechet distance against images seen, one table.

    python benchmarks/digits_recipe.py [ROW ...]

Each row overrides fields of the recipe and runs it in one process of plain torch: the numbers that
any set of workers gives. About 135 CPU-seconds a row.
"""

from __future__ import annotations

import copy
import sys
import time

import torch

from sid_ray.assemble import objective_of, schedule_of
from sid_ray.config import DistillConfig, replace
from sid_ray.data.source import open_labels
from sid_ray.engine import AdamSettings, TorchRole
from sid_ray.metrics.features import load_feature_space
from sid_ray.recipes import recipe
from sid_ray.sampling import labelled_seeds, one_step, sample_in_batches
from sid_ray.step import StepSettings, Sums, Trainee, draws_of, step
from sid_ray.weights.folder import load_model
from sid_ray.weights.sources import resolve_source

ROWS = {
    "recipe": {},
    "recipe, seed 1": {"training__seed": 1},
    "recipe, seed 2": {"training__seed": 2},
    "official EMA": {"training__ema_half_life": 1000, "training__ema_rampup": 0.05},
    "EMA half-life 10,000": {"training__ema_half_life": 10_000, "training__ema_rampup": 0.5},
    "alpha 1.2": {"objective__alpha": 1.2},
    "fake score lr 2e-4": {"training__fake_score_lr": 2e-4},
    "generator lr 3e-5": {"training__generator_lr": 3e-5},
    "both lr 3e-4": {"training__generator_lr": 3e-4, "training__fake_score_lr": 3e-4},
    "batch 32": {"training__batch_size": 32},
    "batch 128": {"training__batch_size": 128},
}
COLUMNS = (5_000, 10_000, 20_000, 30_000)


def scores(config: DistillConfig) -> list[float]:
    """The averaged generator's distance at each of COLUMNS."""
    torch.set_num_threads(1)
    training = config.training
    teacher, _ = load_model(resolve_source(config.teacher.source))
    source, schedule = open_labels(config.data), schedule_of(config)
    space = load_feature_space(config.evaluation.feature_space)
    latents, labels = labelled_seeds(source, range(config.evaluation.num_images))

    def role(learning_rate: float) -> TorchRole:
        adam = AdamSettings(
            learning_rate, training.generator_beta1, training.beta2, training.epsilon
        )
        return TorchRole(copy.deepcopy(teacher), adam)

    fake_score, generator = role(training.fake_score_lr), role(training.generator_lr)
    trainee = Trainee(teacher, fake_score, generator, copy.deepcopy(teacher))
    plan = config.group_plan(world_size=1)
    settings = StepSettings(plan, 0, training.ema_half_life, training.ema_rampup)
    draws = draws_of(source, plan, training.seed, torch.device("cpu"))
    found = []
    for column in COLUMNS:
        while trainee.images_seen < column:
            step(trainee, objective_of(config), settings, draws, Sums())
        images = sample_in_batches(
            lambda z, c: one_step(trainee.generator_ema, schedule, z, c), latents, labels
        )
        found.append(space.frechet_distance(images))
    return found


def main(names: list[str]) -> None:
    print(f"{'images seen':24}" + "".join(f"{column:>10,}" for column in COLUMNS) + "  CPU-s")
    for name in names or ROWS:
        start = time.process_time()
        row = scores(replace(recipe("digits-sid"), **ROWS[name]))
        numbers = "".join(f"{score:10.2f}" for score in row)
        print(f"{name:24}{numbers}{time.process_time() - start:7.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
