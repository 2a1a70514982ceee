"""Starting a Ray for one run alone, without the services that only a cluster needs.

``ray.init`` starts a server for usage statistics, for which it waits, and the autoscaler's monitor
also where no dashboard is asked for and nothing scales: 2 CPU seconds of every start. It has no
option for either, so two private methods of Ray 2.60 are replaced while it runs; on another version
they are left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

VERSION = "2.60."
NEEDLESS = ("start_api_server", "start_monitor")
# With two CPUs Ray starts two processes at a time, and a helper of its own comes before workers.
STARTS, SPARE_STARTS = "RAY_worker_maximum_startup_concurrency", 4


def start_own_ray(workers: int, use_gpu: bool) -> None:
    """A Ray on this machine, which ends with this process."""
    cpus = max(workers, os.cpu_count() or 1)
    starts = {STARTS: str(workers + SPARE_STARTS)}
    with environment(**starts), without(*NEEDLESS):
        ray.init(
            address="local",  # a bare init would attach to any cluster on the machine
            num_cpus=None if use_gpu else cpus,
            include_dashboard=False,
            logging_level="warning",
        )


@contextmanager
def without(*services: str) -> Iterator[None]:
    """A node that is started meanwhile has none of these services."""
    if not ray.__version__.startswith(VERSION):
        yield
        return
    from ray._private.node import Node

    found = {name: getattr(Node, name) for name in services if hasattr(Node, name)}
    for name in found:
        setattr(Node, name, lambda self, **asked: None)
    try:
        yield
    finally:
        for name, method in found.items():
            setattr(Node, name, method)


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
