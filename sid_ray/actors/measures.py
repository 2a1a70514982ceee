"""What all ranks measured, as one number each. Collectives, on a group of gloo's."""

from __future__ import annotations

import resource
from typing import Any

import torch

from sid_ray.distributed.fragments import world
from sid_ray.training.step import Sums


def reduce_means(sums: Sums, group: Any = None) -> dict[str, float]:
    """Means over samples of all ranks; plain sums over ranks where there were no samples."""
    names = sorted(sums.values)
    # Together, and then to the host: its one wait for the device.
    packed = torch.stack([sums.values[name].double() for name in names]).cpu()
    counts = torch.tensor([float(sums.counts[name]) for name in names], dtype=torch.float64)
    both = torch.stack([packed, counts])
    if world()[1] > 1:
        torch.distributed.all_reduce(both, group=group)
    means = both[0] / both[1].clamp_min(1)
    return dict(zip(names, means.tolist(), strict=True))


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this process has had: on the GPU where it works on one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def begin_peak(device: torch.device) -> None:
    """Behind a first iteration: a GPU's most memory counts from here on.

    cuDNN's search for the fastest convolution (torch.backends.cudnn.benchmark) takes the largest
    workspace of all that it tries, once for each shape; what is computed later needs less.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def largest(value: float, group: Any = None) -> float:
    """The largest of all ranks' values. A collective."""
    found = torch.tensor(value, dtype=torch.float64)
    if world()[1] > 1:
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=group)
    return float(found)
