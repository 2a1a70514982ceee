"""Starting a Ray for one run alone, without the services that only a cluster needs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from sid_ray.ray_setup.ray_private import without_needless_services

# With two CPUs Ray starts two processes at a time, and a helper of its own comes before workers.
STARTS, SPARE_STARTS = "RAY_worker_maximum_startup_concurrency", 4


def start_own_ray(workers: int, cpus_beside: float = 0.0) -> None:
    """A Ray on this machine, which ends with this process.

    A CPU for each worker, however many the machine has, and ``cpus_beside`` for the evaluator: a
    CPU of Ray's is a place, not a core.
    """
    cpus = max(workers + math.ceil(cpus_beside), os.cpu_count() or 1)
    starts = {STARTS: str(workers + SPARE_STARTS)}
    with environment(**starts), without_needless_services():
        ray.init(
            address="local",  # a bare init would attach to any cluster on the machine
            num_cpus=cpus,
            include_dashboard=False,
            logging_level="warning",
        )


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables for as long as it lasts; a value that the user has set wins."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
