"""What training waits for when a checkpoint is taken, against what a checkpoint takes: one table.

    python -m benchmarks.checkpoint_stall [--images 16]

CIFAR-10's published network (55.7 million parameters) three times, in plain torch, one thread. A
step here is one of few images; the recipe's has 256 to 512.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.one_process import plain_trainee
from sid_ray.checkpoint.snapshot import take_snapshot, write_snapshot
from sid_ray.config.distill_config import replace
from sid_ray.denoisers.registry import family_of
from sid_ray.groups import GroupPlan
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import generator_description, objective_of
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.types import Batch, Pick

ROUNDS = 5


class NoData:
    """A data-free, unconditional run's source."""

    shape = (3, 32, 32)

    def batch(self, pick: Pick) -> Batch:
        return Batch(None, None, None)


def timed(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    images = parser.parse_args().images
    torch.set_num_threads(1)
    config = replace(recipe("cifar10-uncond-sid"), training__precision="float32")
    teacher_is = teacher_of(config)
    teacher = family_of(teacher_is.family).build(teacher_is.network).eval().requires_grad_(False)
    trainee = plain_trainee(config, teacher, teacher_is.family)
    roles = {"fake_score": trainee.fake_score, "generator": trainee.generator}
    objective, plan = objective_of(config), GroupPlan(images, images, images, 1)
    draws = draws_of(NoData(), plan, 0, torch.device("cpu"), objective.draw_spec)
    settings = StepSettings(plan, 0, 0.0, 0.0)
    description = generator_description(config, teacher_is)
    seconds: dict[str, list[float]] = {"a step": [], "copy: what training waits for": []}
    seconds["hash and write, in a thread beside it"] = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(ROUNDS):
            times = list(seconds.values())
            times[0].append(timed(lambda: step(trainee, objective, settings, draws, Sums())))
            began = time.perf_counter()
            snapshot = take_snapshot(trainee, roles, description, "{}")
            times[1].append(time.perf_counter() - began)
            path = Path(folder) / str(index)
            times[2].append(timed(lambda p=path, s=snapshot: write_snapshot(p, s)))
        size = sum(p.stat().st_size for p in Path(folder).glob("0/**/*") if p.is_file())
    print(f"a checkpoint of {size / 2**30:.2f} GiB, a step of {images} images; medians of {ROUNDS}")
    print("| what | seconds | of a step |")
    print("|---|---:|---:|")
    base = statistics.median(seconds["a step"])
    for name, found in seconds.items():
        value = statistics.median(found)
        print(f"| {name} | {value:.2f} | {value / base:.3f} |")


if __name__ == "__main__":
    main()
