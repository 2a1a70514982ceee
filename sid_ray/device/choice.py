"""Which device a command computes on: ``--device auto``, cuda or cpu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from sid_ray.device.found import gpus_here, no_gpu_reason
from sid_ray.errors import UserError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cuda", "cpu"]


def on_gpu(asked: Device) -> bool:
    """Whether to compute on a GPU of this machine. Raises UserError for one that is not there."""
    if asked == "cuda" and (reason := no_gpu_reason()):
        raise UserError(f"--device cuda: {reason}")
    return asked == "cuda" or (asked == "auto" and bool(gpus_here()))


def device_for(asked: Device) -> torch.device:
    """The device itself: of several GPUs the first. Raises UserError as ``on_gpu``."""
    import torch

    return torch.device("cuda", 0) if on_gpu(asked) else torch.device("cpu")
