"""This machine, as ``planning`` wants it: where a Ray of a run's own will be."""

from __future__ import annotations

import os
from pathlib import Path

from sid_ray.config.distill_config import DistillConfig, evaluator_resources
from sid_ray.device.found import gpus_here, no_gpu_reason
from sid_ray.planning.machine import Machine, Node

CGROUP = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": 2 CPUs; "max 100000": all


def cpus_here(quota: Path = CGROUP) -> int:
    """CPUs that this process may use: of its affinity, and of its container's share."""
    count = len(os.sched_getaffinity(0))
    try:
        share, period = quota.read_text().split()
        return max(1, min(count, round(int(share) / int(period))))
    except (OSError, ValueError):  # no such file, or no limit
        return count


def machine_here(config: DistillConfig) -> Machine:
    """Where a Ray of the run's own will be."""
    gpus = gpus_here() if config.resources.use_gpu is not False else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = {gpu.name for gpu in gpus}
    node = Node(
        # A CPU of a Ray of its own is a place: it has one for each GPU, however many cores.
        cpus=max(cpus_here(), len(gpus)),
        gpus=len(gpus),
        gpu_bytes=min((gpu.memory for gpu in gpus), default=0),
        host_bytes=memory,
        gpu=names.pop() if len(names) == 1 else "",
    )
    taken = evaluator_resources(config)
    if not gpus:  # a CPU more is made for the evaluator (own_ray.py)
        taken.pop("CPU", None)
    why = "" if gpus else no_gpu_reason()
    return Machine((node,), fixed=True, taken=taken, no_gpu=why)
