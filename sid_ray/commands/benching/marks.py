"""Seconds of the parts of an iteration, without waiting for the GPU between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from sid_ray.commands.benching.short import AVERAGE, LOOK, PASS, UPDATE
from sid_ray.distributed.roles import Trainee
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.types import Objective, SumsOf


class Marks:
    """The times at which parts of an iteration ended: CUDA events in the stream, or a clock."""

    def __init__(self, device: torch.device):
        self._device = device
        self._found: list[tuple[str, Any]] = []

    def start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._found = [("", self._now())]

    def mark(self, name: str) -> None:
        """What was done since the last mark is this part's."""
        self._found.append((name, self._now()))

    def seconds(self) -> dict[str, list[float]]:
        """Part -> seconds of each time it was done. Waits for the GPU."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found: dict[str, list[float]] = {}
        for (_, before), (name, after) in zip(self._found, self._found[1:], strict=False):
            if self._device.type == "cuda":
                spent = before.elapsed_time(after) / 1000
            else:
                spent = after - before
            found.setdefault(name, []).append(spent)
        return found

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def after(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, with a mark behind it."""

        def marked(*arguments: Any, **named: Any) -> Any:
            made = call(*arguments, **named)
            self.mark(name)
            return made

        return marked


def watch(trainee: Trainee, marks: Marks) -> None:
    """Puts marks behind each backward pass, update and average of these roles.

    What stands before a backward pass, draws and data included, is in its pass.
    """
    for name, role in ((FAKE_SCORE, trainee.fake_score), (GENERATOR, trainee.generator)):
        watched: Any = role
        watched.backward = marks.after(f"{name} {PASS}", role.backward)
        watched.update = marks.after(f"{name} {UPDATE}", role.update)
        watched.average_into = marks.after(AVERAGE, role.average_into)


class WatchedObjective:
    """An objective whose looks ahead over a split group are marked, too."""

    def __init__(self, objective: Objective, marks: Marks):
        self._objective, self._marks = objective, marks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def fake_sums(self, images_seen: int) -> SumsOf | None:
        return self._watched(FAKE_SCORE, self._objective.fake_sums(images_seen))

    def generator_sums(self, images_seen: int) -> SumsOf | None:
        return self._watched(GENERATOR, self._objective.generator_sums(images_seen))

    def _watched(self, role: str, sums: SumsOf | None) -> SumsOf | None:
        return sums and self._marks.after(f"{role} {LOOK}", sums)
