"""What becomes of a run whose workers run out of memory: it starts again with smaller passes, once.

A run is no function of its micro-batch: how many samples a pass holds changes the order of sums and
nothing else. The rank that lacks memory tells the tracker, which remembers for all of them, and
raises; the group ends as after any failure, and its next start asks the tracker first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from sid_ray.actors.signals import OutOfMemoryAgainError, SmallerPassesError
from sid_ray.config.distill_config import DistillConfig

FLAGS = (
    "--resources.micro-batch sets a smaller one, --resources.activation-checkpointing remembers "
    "less inside a pass, --resources.offload-optimizer moves Adam's state to CPU memory"
)


@dataclass
class Passes:
    """The micro-batch of a run's next start, on which all ranks agree.

    ``tried`` is what was too large; ``now`` is 0 for what the config says.
    """

    tried: int = 0
    now: int = 0

    def after(self, tried: int, smaller: int) -> int:
        """What to go on with where ``tried`` was too large; 0 where this was the second time.

        Several ranks of one group may say the same.
        """
        if not self.now:
            self.tried, self.now = tried, smaller
        return self.now if tried == self.tried else 0


def largest_pass(config: DistillConfig, world_size: int) -> int:
    """Samples of a rank's fullest pass: its groups may be fewer than a micro-batch could hold."""
    plan = config.group_plan(world_size)
    return max(len(s.groups) * (s.stop - s.start) for s in plan.micro_steps(0))


def half_pass(config: DistillConfig, world_size: int) -> int:
    """The largest micro-batch that makes the fullest pass half as large at most; 0 for none.

    It is a divisor of a group, or whole groups.
    """
    size, most = config.training.group_size, largest_pass(config, world_size) // 2
    if most >= size:
        return most // size * size
    return max((part for part in range(1, most + 1) if size % part == 0), default=0)


def short_of_memory(config: DistillConfig, world_size: int, tracker: Any) -> RuntimeError:
    """Has the run start again with smaller passes, once. Returns what its rank raises for that."""
    tried, smaller = largest_pass(config, world_size), half_pass(config, world_size)
    lack = f"out of memory with {tried} image{'s' * (tried != 1)} in a pass"
    micro_batch = ray.get(tracker.smaller_passes.remote(tried, smaller))
    if micro_batch:
        line = f"{lack}: starting again with --resources.micro-batch {micro_batch}"
        ray.get(tracker.event.remote(line))  # ranks may say the same
        return SmallerPassesError(line)
    line = f"{'again ' * (smaller > 0)}{lack}: {FLAGS}"
    ray.get(tracker.give_up.remote(line))
    return OutOfMemoryAgainError(line)
