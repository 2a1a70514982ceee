"""Seconds of what is done several times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from sid_ray.commands.device.collectives import synchronised

REPEATS, WARM_UPS = 5, 2


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Median of a few times, behind those in which kernels are chosen and memory is got."""
    found = []
    for _ in range(WARM_UPS + repeats):
        synchronised(device)
        began = time.perf_counter()
        run()
        synchronised(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[WARM_UPS:])
