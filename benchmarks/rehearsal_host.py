"""The host's seconds for one operation of an iteration, on a machine without a GPU.

    python -m benchmarks.rehearsal_host cifar10-uncond-sid '{"img_resolution": 4, ...}'

An iteration of a recipe's own code on its own layers, of a few channels and pixels, so that there
is nothing to compute: what is left is Python, torch's dispatcher and autograd, as they run on the
host whatever the device. The last line is the process's CPU seconds an operation, the least of
several iterations; operations are those that would launch on a GPU, counted by their names as the
rehearsal counts them.

What it is not: a launch on a GPU (2 to 5 us in the driver, which does not run here), and what
cuDNN's and cuBLAS's front ends take; in their place are the CPU's own kernels on tensors of a few
elements. A faster or slower processor moves it as a whole.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sid_ray.config.chosen import plain
from sid_ray.config.distill_config import replace
from sid_ray.data.source import DataSource
from sid_ray.denoisers import cpu_convolution
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.registry import family_of
from sid_ray.distributed.fragments import ShardedAverage
from sid_ray.distributed.roles import TorchRole, Trainee
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import adam_of, network_of, objective_of, rules_of
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from tests.support.fake_cuda.watch import FREE, launches

ITERATIONS, PASSES, GROUP = 8, 2, 2


class Operations(TorchDispatchMode):
    """Counts what would launch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in FREE and name != "_local_scalar_dense":
            self.count += launches(name, args)
        return func(*args, **(kwargs or {}))


def main(name: str, small: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    sizes = {"training__batch_size": PASSES * GROUP, "training__group_size": GROUP}
    config = replace(recipe(name), **sizes)
    config = replace(config, resources__num_workers=1, resources__micro_batch=GROUP)
    config = replace(config, resources=plain(config.resources))
    description = network_of(config, teacher_of(config))
    family, network = family_of(description.family), dict(description.network) | small

    def built() -> torch.nn.Module:
        module = family.build(network)
        # Half precision on a CPU runs other code; bfloat16 has the casts of float16.
        half = config.training.precision != "float32"
        set_precision(module, "bfloat16" if half else "float32")
        return module

    rules = rules_of(config, description.family)
    fake_score, generator = (
        TorchRole(built(), adam_of(config, role), rules[role])
        for role in ("fake_score", "generator")
    )
    trainee = Trainee(
        built().requires_grad_(False), fake_score, generator, ShardedAverage(generator)
    )
    objective, plan = objective_of(config), config.group_plan(1)
    source = DataSource(family.shape(network), family.label_dim(network))
    drawn: dict[Any, Any] = {}
    draw = draws_of(source, plan, 0, torch.device("cpu"), objective.draw_spec)

    def draws(stream: int, images_seen: int, micro_step: Any) -> Any:
        # Drawn once: in a run another thread draws.
        key = stream, micro_step
        if key not in drawn:
            drawn[key] = draw(stream, 0, micro_step)
        return drawn[key]

    def iterate() -> None:
        step(trainee, objective, StepSettings(plan, 0, 1000, 0.05), draws, Sums())

    # The convolutions of this project's own that only CPUs have are left out.
    with mock.patch.object(cpu_convolution, "fits", lambda *args: False):
        iterate()
        with Operations() as operations:
            iterate()
        gc.disable()
        times = []
        for _ in range(ITERATIONS):
            began = time.process_time()
            iterate()
            times.append(time.process_time() - began)
    print(f"{operations.count} operations, seconds an iteration: {sorted(times)}")
    print(min(times) / operations.count)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
