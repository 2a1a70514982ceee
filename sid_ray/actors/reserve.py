"""A GPU for the driver itself, when its workers have gone: reserved for as long as it is used.

On a joined cluster a GPU that Ray counts as free may be promised to another run at any moment. An
actor that does nothing holds it meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
import torch

from sid_ray.actors.beside import this_node
from sid_ray.device.found import gpus_here
from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import joins_cluster, stop_like_ctrl_c
from sid_ray.ray_setup.start import with_ray

PATIENCE_S = 600.0  # for a GPU of this machine, behind which a CPU has to do
CPU = torch.device("cpu")


@ray.remote(num_cpus=0, num_gpus=1)
class GpuPlace:
    """Holds a GPU of its node."""

    def gpu(self) -> str:
        """Its id, as the node's CUDA_VISIBLE_DEVICES names it."""
        return str(ray.get_gpu_ids()[0])


@contextmanager
def reserved_device(tell: Callable[[str], None]) -> Iterator[torch.device]:
    """A GPU of this machine, or the CPU where it has none or, after a while, none that is free.

    A Ray of the run's own has ended by now: what it had is this process's. ``tell`` hears in a line
    what is waited for. To be called when this process is in no Ray.
    """
    if not gpus_here():
        yield CPU
        return
    if not joins_cluster():
        yield torch.device("cuda", 0)
        return
    try:
        with_ray(lambda: None, lambda: ray.init(logging_level="error", log_to_driver=False))
    except UserError as error:
        tell(f"no GPU can be reserved ({error}): on the CPU")
        yield CPU
        return
    try:
        place = GpuPlace.options(scheduling_strategy=this_node()).remote()  # type: ignore[attr-defined]
        yield device_of(place, tell)
    finally:
        ray.shutdown()
        stop_like_ctrl_c()


def device_of(place: Any, tell: Callable[[str], None]) -> torch.device:
    """The GPU that an actor holds, as this process numbers it."""
    asked = place.gpu.remote()
    if not ray.wait([asked], timeout=2.0)[0]:
        tell("waiting for a free GPU of this machine")
    try:
        held: str = ray.get(asked, timeout=PATIENCE_S)
    except ray.exceptions.RayError:  # GetTimeoutError is one
        tell(f"no GPU of this machine was free within {PATIENCE_S:.0f} s: on the CPU")
        return CPU
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(gpu.index) for gpu in gpus_here()]
    if held not in names:
        tell(f"this process does not see GPU {held}, which Ray gave it: on the CPU")
        return CPU
    return torch.device("cuda", names.index(held))
