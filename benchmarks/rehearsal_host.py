"""The host's seconds for one operation of an iteration, on a machine without a GPU.

    python -m benchmarks.rehearsal_host cifar10-uncond-sid '{"img_resolution": 4, ...}'

An iteration of a recipe's own code on its own layers, of a few channels and pixels, so that there
is nothing to compute: what is left is Python, torch's dispatcher and autograd, as they run on the
host whatever the device. Prints JSON: how many operations would launch on a GPU in an iteration of
1, 2 and 3 passes a phase, by their names, and the process's CPU seconds for one of them, the least
of several iterations. Of Adam and averages it counts the launches of the small network.

What it is not: a launch on a GPU (2 to 5 us in the driver, which does not run here), and what
cuDNN's and cuBLAS's front ends take; in their place are the CPU's own kernels on tensors of a few
elements. A faster or slower processor moves it as a whole.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
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

ITERATIONS, GROUP = 4, 2
PASSES = (1, 2, 3)  # of each phase; the last is timed


class Operations(TorchDispatchMode):
    """Counts what would launch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in FREE and name != "_local_scalar_dense":
            self.count += launches(name, args)
        return func(*args, **(kwargs or {}))


class Small:
    """A recipe's iteration on its own layers, with next to nothing in them."""

    def __init__(self, name: str, small: dict[str, Any]):
        config = replace(recipe(name), training__group_size=GROUP, resources__num_workers=1)
        self.config = replace(config, resources=plain(config.resources))
        description = network_of(config, teacher_of(config))
        self.family, self.network = family_of(description.family), dict(description.network) | small
        rules = rules_of(config, description.family)
        roles = [
            TorchRole(self.built(), adam_of(config, role), rules[role])
            for role in ("fake_score", "generator")
        ]
        teacher = self.built().requires_grad_(False)
        self.trainee = Trainee(teacher, *roles, ShardedAverage(roles[1]))

    def built(self) -> torch.nn.Module:
        module = self.family.build(self.network)
        # Half precision on a CPU runs other code; bfloat16 has the casts of float16.
        half = self.config.training.precision != "float32"
        set_precision(module, "bfloat16" if half else "float32")
        return module

    def iteration(self, passes: int) -> Callable[[], None]:
        """One of so many passes a phase."""
        sizes = {"training__batch_size": passes * GROUP, "resources__micro_batch": GROUP}
        config = replace(self.config, **sizes)
        objective, plan = objective_of(config), config.group_plan(1)
        source = DataSource(self.family.shape(self.network), self.family.label_dim(self.network))
        drawn: dict[Any, Any] = {}
        draw = draws_of(source, plan, 0, torch.device("cpu"), objective.draw_spec)

        def draws(stream: int, images_seen: int, micro_step: Any) -> Any:
            # Drawn once: in a run another thread draws.
            key = stream, micro_step
            if key not in drawn:
                drawn[key] = draw(stream, 0, micro_step)
            return drawn[key]

        settings = StepSettings(plan, 0, 1000, 0.05)
        return lambda: step(self.trainee, objective, settings, draws, Sums())


def main(name: str, small: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    gc.disable()
    network, counts, times = Small(name, small), [], []
    # The convolutions of this project's own that only CPUs have are left out.
    with mock.patch.object(cpu_convolution, "fits", lambda *args: False):
        for passes in PASSES:
            iterate = network.iteration(passes)
            iterate()  # what is made once
            with Operations() as operations:
                iterate()
            counts.append(operations.count)
        for _ in range(ITERATIONS):
            began = time.process_time()
            iterate()
            times.append(time.process_time() - began)
    print(json.dumps({"operations": counts, "seconds": min(times) / counts[-1]}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
