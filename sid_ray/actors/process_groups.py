"""Process groups of the workers: how long a rank waits for others, and how a group ends.

Nothing that goes wrong is left to a timeout. A process that dies is seen by Ray Train's controller
within a second; a rank that raises is, too, and then the whole group ends. What remains for the
timeouts are processes that live and do nothing.

Facts of Ray 2.60 and torch 2.13 that this file rests on
    Ray Train ends a group by ``torch.distributed.destroy_process_group`` on every worker, for which
    it waits 30 s (ray/train/torch/config.py:322-337), and then 5 s for a method of the same worker
    (execution/worker_group/state.py:154-166), which queues behind it. On NCCL that is the normal
    exit: it completes what is pending (``shutdown``, c10d/ProcessGroupNCCL.hpp:980), and a
    collective with a rank that has raised never is. ``abort`` (983) does not wait; of NCCL's groups
    all must be given up together (torch/distributed/distributed_c10d.py:2493-2505).
    The variable for these 30 s is not among those that Ray hands from the driver to its controller
    (ray/train/v2/_internal/constants.py:125-143): on a joined cluster it does nothing.
    A worker sees all GPUs of its node that workers have, named in the order of texts: 0, 1, 10, 2
    (callbacks/accelerators.py:156), while its local rank counts them as numbers
    (execution/worker_group/worker_group.py:1183-1192). DeepSpeed computes on the GPU of that number
    (deepspeed/runtime/engine.py:1941-1966), Ray's ``get_device`` says which one is this worker's.
    Gloo knows no abort (c10d/Backend.hpp:525): who waits is free once the other process has ended.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed
from torch.distributed import distributed_c10d

from sid_ray.actors.interfaces import AddressConfig, ByAddress

STEP_TIMEOUT_S = 600
"""For a collective on GPUs: on the default group, and by torch's own default on those that
DeepSpeed makes. Ranks meet on gloo before their first one: on NCCL nobody waits for a node that
still fetches its networks."""
MEETING_TIMEOUT_S = 1800
"""For a collective on gloo, where ranks wait for each other's storage, too."""
PATIENT_TIMEOUT_S = 24 * 3600
"""For ranks that wait for others' prompts to be embedded, which takes hours where there are many. A
process that dies meanwhile ends the group, as ever."""
SAID_AFTER_S = 30.0  # of waiting
LEAVE_S = 2.0  # for which the controller waits while the workers leave their groups


def bind(device: torch.device) -> None:
    """Has this thread's CUDA, torch's collectives and DeepSpeed use one GPU: Ray's ``get_device``.

    For the thread that trains, before its first collective: the current device is a thread's own.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)


def leave_groups(patience_s: float = LEAVE_S / 2) -> None:
    """Gives up all process groups of this process, with whatever is pending in them.

    Runs on a worker. In a thread: an abort that hangs must not keep the worker from ending.
    """
    leaving = threading.Thread(target=abort_groups, daemon=True, name="leave process groups")
    leaving.start()
    leaving.join(patience_s)


def abort_groups() -> None:
    if torch.distributed.is_initialized():
        distributed_c10d._abort_process_group()


def meeting_group() -> Any:
    """The process group in which ranks tell each other small things, without GPUs. A collective."""
    if torch.distributed.get_backend() == "gloo":
        return None
    timeout = timedelta(seconds=MEETING_TIMEOUT_S)
    return torch.distributed.new_group(backend="gloo", timeout=timeout)


@contextmanager
def patiently(waits: Callable[[], None], said_after_s: float = SAID_AFTER_S) -> Iterator[None]:
    """Returns when every rank has done what stands inside, however long one takes. A collective.

    Not on GPUs, and not on the group of meetings: both give up too early. ``waits`` is called once
    on a rank that has been here for ``said_after_s``. What is raised inside waits for nobody.
    """
    if torch.distributed.get_world_size() == 1:
        yield
        return
    timeout = timedelta(seconds=PATIENT_TIMEOUT_S)
    group = torch.distributed.new_group(backend="gloo", timeout=timeout)  # all are here now
    timer = threading.Timer(said_after_s, waits)
    timer.daemon = True
    timer.start()
    try:
        yield
        torch.distributed.barrier(group)
    finally:
        timer.cancel()
    torch.distributed.destroy_process_group(group)


class Groups(ByAddress):
    """Ray Train's, bound to the address of each node, and left at once where it ends."""

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """The workers' processes end behind this, whatever they did."""
        left = worker_group.execute_async(leave_groups)
        ray.wait(left, num_returns=len(left), timeout=LEAVE_S)


@dataclass
class GroupConfig(AddressConfig):
    """How the default group is made, for one backend."""

    def __post_init__(self) -> None:
        self.timeout_s = MEETING_TIMEOUT_S if self.backend == "gloo" else STEP_TIMEOUT_S

    @property
    def backend_cls(self) -> type[Groups]:
        return Groups
