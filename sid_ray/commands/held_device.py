"""The device of a command's own process, reserved where a cluster's GPUs are shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sid_ray.device.choice import Device, device_for
from sid_ray.errors import UserError
from sid_ray.ray_setup.environment import joins_cluster


@contextmanager
def held_device(asked: Device, tell: Callable[[str], None]) -> Iterator[torch.device]:
    """What --device asks for; on a joined cluster a GPU that Ray gives, for as long as it is used.

    ``tell`` hears in a line what is waited for. Raises UserError for a GPU that is asked for by
    name and is not there, or not to be had.
    """
    device = device_for(asked)
    if device.type == "cpu" or not joins_cluster():
        yield device
        return
    from sid_ray.actors.reserve import reserved_device  # loads Ray

    said: list[str] = []

    def note(text: str) -> None:
        said.append(text)
        tell(text)

    with reserved_device(note) as given:
        if asked == "cuda" and given.type == "cpu":
            raise UserError(f"--device cuda: {said[-1].removesuffix(': on the CPU')}")
        yield given
