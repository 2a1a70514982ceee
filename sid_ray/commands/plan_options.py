"""What a person asks of ``sid-ray plan``, beside the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval

from sid_ray.commands.arguments import OfRecipe
from sid_ray.errors import UserError
from sid_ray.planning.memory import RESERVE_GIB

Size = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class PlanOptions(OfRecipe):
    """What a run would take of so many GPUs where its resources are auto, memory on each GPU at
    every ZeRO stage, the largest micro-batch, and checkpoints. Starts nothing, fetches nothing that
    is published. Exit code 2 for a run that cannot fit.
    """

    gpus: Annotated[int, Interval(ge=0, le=10**6)] = 0
    """GPUs in all; 0 for those of this machine, or 8 where it has none."""
    gpu_memory: Annotated[float, Ge(0)] = 0.0
    """Memory of each, in GiB; 0 for those of this machine, or 80."""
    nodes: Annotated[int, Interval(ge=1, le=10**5)] = 1
    """Nodes that these GPUs are on. Several are a cluster, whose runs shrink and grow."""
    reserve: Annotated[float, Interval(ge=0)] = RESERVE_GIB
    """GiB of it that are no tensor's: CUDA, NCCL, workspaces, fragments."""
    disk_rate: Size = 1.0
    """GiB a second that all workers together write to disk."""
    upload_rate: Size = 0.5
    """GiB a second to where the run's folder is."""

    def check(self) -> None:
        """Raises UserError for GPUs that are on no node."""
        if self.nodes > 1 and (not self.gpus or self.gpus % self.nodes):
            raise UserError(
                f"--gpus {self.gpus} on --nodes {self.nodes}: expected as many on each, such as "
                f"--gpus {8 * self.nodes}"
            )
