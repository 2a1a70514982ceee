"""What a person asks of ``sid-ray plan``, beside the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Interval

from sid_ray.commands.arguments import OfRecipe
from sid_ray.planning.memory import RESERVE_GIB

Size = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class PlanOptions(OfRecipe):
    """Memory on each GPU at every ZeRO stage, the largest micro-batch, checkpoints, and which stage
    to take. Starts nothing, fetches nothing that is published. Exit code 2 for a run that cannot
    fit.
    """

    gpus: Annotated[int, Interval(ge=0, le=10**6)] = 0
    """GPUs; 0 for the recipe's workers."""
    gpu_memory: Size = 80.0
    """Memory of each, in GiB."""
    reserve: Annotated[float, Interval(ge=0)] = RESERVE_GIB
    """GiB of it that are no tensor's: CUDA, NCCL, workspaces, fragments."""
    disk_rate: Size = 1.0
    """GiB a second that all workers together write to disk."""
    upload_rate: Size = 0.5
    """GiB a second to where the run's folder is."""
