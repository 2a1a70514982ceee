"""Draws of the next micro-steps, made and copied to the device while the present one computes.

    one thread: random numbers, data, prompts' embeddings -> page-locked memory
        -> copy on a stream of its own -> event | the step's stream waits for the event

What will be asked for is known: the units of both phases, iteration after iteration, are a function
of the images seen. The thread goes over the borders of phases and iterations, AHEAD units and at
most one iteration ahead: where the next one starts, the worker first asks whether its data is there
(actors/worker.py). A step that asks for something else, as after a roll-back, gets it all the same,
later; nothing but time depends on what was made ahead.

Why numbers are drawn on the CPU and not on the GPU by a counter-based generator: docs/speed.md.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR
from sid_ray.groups import GroupPlan, MicroStep
from sid_ray.training.draws import Drawn, DrawUnit, Maker, seen_by
from sid_ray.types import Batch, Draw

AHEAD = 2  # units that are made beyond the one that is computed


@dataclass(frozen=True)
class Coming:
    """The units that a rank's steps ask for, in their order.

    Args:
        plan, rank: which groups are this rank's.
        trains_generator: whether the iteration at so many images has a generator phase.
        until: images seen at the run's end.
    """

    plan: GroupPlan
    rank: int
    trains_generator: Callable[[int], bool]
    until: float = float("inf")

    def iteration(self, images_seen: int) -> Iterator[DrawUnit]:
        """Those of one iteration. Parts of a group, and padding with the same groups, are one."""
        packs = [
            groups for groups, _ in groupby(s.groups for s in self.plan.micro_steps(self.rank))
        ]
        phases = (FAKE_SCORE, GENERATOR) if self.trains_generator(images_seen) else (FAKE_SCORE,)
        for stream in phases:
            yield from (DrawUnit(stream, images_seen, groups) for groups in packs)

    def after(self, unit: DrawUnit) -> Iterator[DrawUnit]:
        """All that come behind a unit; none behind one that no step asks for."""
        of_iteration = list(self.iteration(unit.images_seen))
        if unit not in of_iteration:
            return
        yield from of_iteration[of_iteration.index(unit) + 1 :]
        images_seen = unit.images_seen + self.plan.batch_size
        while images_seen < self.until:
            yield from self.iteration(images_seen)
            images_seen += self.plan.batch_size


class Sent(Protocol):
    """A unit on its way to the device."""

    def received(self) -> Drawn:
        """For computations that the calling thread launches from now on; never blocks the host."""


class Lane(Protocol):
    """The way from the thread that draws to a device."""

    pinned: bool

    def begin(self) -> None:
        """Called in the thread, first of all: what it launches from then on is in this lane."""

    def send(self, drawn: Drawn) -> Sent: ...


@dataclass(frozen=True)
class OnHost:
    """A unit that is where it is computed."""

    drawn: Drawn

    def received(self) -> Drawn:
        return self.drawn


class HostLane:
    """No way at all: the device is the CPU."""

    pinned = False

    def begin(self) -> None:
        """Nothing to set."""

    def send(self, drawn: Drawn) -> Sent:
        return OnHost(drawn)


@dataclass(frozen=True)
class OnItsWay:
    """A unit that a side stream copies; ``copied`` is behind the copies."""

    drawn: Drawn
    copied: torch.cuda.Event
    device: torch.device

    def received(self) -> Drawn:
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self.copied)
        for tensor in self.drawn.tensors():
            # Allocated on the side stream: without this, memory that the step lets go of could be
            # written by the next copy while the step's kernels still read it.
            if tensor.is_cuda:
                tensor.record_stream(stream)
        return self.drawn


class SideStream:
    """Copies to a GPU on a stream of its own.

    Page-locked memory is torch's: blocks are cached, and one that was freed is used again only
    after the copies from it that were recorded (torch/include/ATen/core/CachingHostAllocator.h,
    record_event and process_events). So at most AHEAD units and one lie in it.
    """

    pinned = True

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        # What the step's stream has made so far, such as a text encoder's weights, is there.
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def begin(self) -> None:
        """The thread's device and stream, for good.

        A thread begins on device 0, whatever its parent chose, and a context of its own there
        would take hundreds of MiB of another worker's GPU.
        """
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(self.stream)

    def send(self, drawn: Drawn) -> Sent:
        def copied(value: Tensor) -> Tensor:
            if value.device.type != "cpu":
                return value
            page_locked = value if value.is_pinned() else value.pin_memory()
            return page_locked.to(self.device, non_blocking=True)

        there = drawn.each(copied)
        event = torch.cuda.Event()
        event.record(self.stream)
        return OnItsWay(there, event, self.device)


def lane_to(device: torch.device) -> Lane:
    """The way to a device."""
    return SideStream(device) if device.type == "cuda" else HostLane()


@dataclass
class DrawsAhead:
    """Keyed draws for micro-steps: the numbers of ``draws_of``, made before they are asked for.

    Args:
        make: makes a unit on the host.
        coming: what will be asked for.
        lane: the way to the device.
        depth: units that are made ahead; 0 makes each when it is asked for, in the thread.
    """

    make: Maker
    coming: Coming
    lane: Lane
    depth: int = AHEAD
    waited_s: float = 0.0  # that steps have waited for draws
    _now: tuple[DrawUnit, Drawn] | None = None
    _queue: deque[tuple[DrawUnit, Future[Sent]]] = field(default_factory=deque)
    _next: Iterator[DrawUnit] = field(default_factory=lambda: iter(()))
    _held_back: DrawUnit | None = None  # of an iteration that is too far ahead

    def __post_init__(self) -> None:
        self.make = replace(self.make, pinned=self.lane.pinned)
        self._thread = ThreadPoolExecutor(1, "draws", self.lane.begin)

    def __call__(self, stream: int, images_seen: int, micro_step: MicroStep) -> tuple[Draw, Batch]:
        unit = DrawUnit(stream, images_seen, micro_step.groups)
        if self._now is None or self._now[0] != unit:
            self._now = unit, self._take(unit)
        return seen_by(micro_step, self._now[1])

    def close(self) -> None:
        """Ends the thread. A source that reads files is closed before: the thread may wait for it.

        Asking for more raises RuntimeError.
        """
        self._now = None
        self._queue.clear()
        self._thread.shutdown(cancel_futures=True)

    def _take(self, unit: DrawUnit) -> Drawn:
        """A unit, and the thread is told of the next. Raises what making it raised."""
        if not self._queue or self._queue[0][0] != unit:
            self._jump(unit)
        _, future = self._queue.popleft()
        self._look_ahead(unit)
        began = time.monotonic()
        sent = future.result()
        self.waited_s += time.monotonic() - began
        return sent.received()

    def _jump(self, unit: DrawUnit) -> None:
        """Begins anew at a unit that was not expected."""
        for _, future in self._queue:
            future.cancel()
        self._queue.clear()
        self._next, self._held_back = self.coming.after(unit), None
        self._ask(unit)

    def _look_ahead(self, present: DrawUnit) -> None:
        last = present.images_seen + self.coming.plan.batch_size
        while len(self._queue) < self.depth:
            unit = self._held_back or next(self._next, None)
            self._held_back = unit if unit and unit.images_seen > last else None
            if unit is None or self._held_back:
                return
            self._ask(unit)

    def _ask(self, unit: DrawUnit) -> None:
        self._queue.append((unit, self._thread.submit(self._made, unit)))

    def _made(self, unit: DrawUnit) -> Sent:
        """In the thread."""
        return self.lane.send(self.make(unit))
