"""Faults as they happen to be written, each of which a rehearsal must see."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.types import Condition
from tests.support.fake_cuda.cases import Case
from tests.support.fake_cuda.machine import CUDA
from tests.support.fake_cuda.watch import Watch


def a_device_left_out() -> None:
    torch.zeros(4, device=CUDA) + torch.arange(4)


def a_level_on_the_host() -> None:
    from tests.support.fake_cuda.paths import description_of, laid_out

    net = laid_out(description_of(Case())).to(CUDA)
    net(torch.zeros(2, 3, 8, 8, device=CUDA), EDMSchedule().level(torch.ones(2)), Condition())


def a_weight_of_another_type() -> None:
    x = torch.zeros(1, 3, 8, 8, device=CUDA, dtype=torch.bfloat16)
    F.conv2d(x, torch.zeros(3, 3, 3, 3, device=CUDA))


def an_operation_of_cpus() -> None:
    torch.histogram(torch.zeros(8, device=CUDA), 4)


def a_value_read() -> None:
    if torch.zeros((), device=CUDA).isfinite():
        torch.ones(1, device=CUDA)


def a_copy_that_is_waited_for() -> None:
    # Not pinned: non_blocking does not help.
    torch.zeros(4).to(CUDA, non_blocking=True)


FAULTS: dict[str, Callable[[], None]] = {
    function.__name__.replace("_", " ").replace("cpus", "CPUs"): function
    for function in (
        a_device_left_out,
        a_level_on_the_host,
        a_weight_of_another_type,
        an_operation_of_cpus,
        a_value_read,
        a_copy_that_is_waited_for,
    )
}


def fault(case: Case, watch: Watch) -> None:
    """The fault that ``variant`` names."""
    with watch.during("fault"):
        FAULTS[case.variant]()
