"""Images of all clients packed into batches, each request in its turn.

    dispatcher = Dispatcher(send, most={"generator": 64, "teacher": 8}, queued=1024)
    painted = await dispatcher.paint([WantedImage("generator", 0), ...])

``send`` makes a batch, somewhere. While replicas are free a batch goes at once; while they work
images gather, and the next batch takes one of each request in turn until it is full. So a request
of one image never waits behind all of another's 64, and no timer delays anybody. What a dying
replica has not answered is asked again once, since an image depends on its seed alone; then by
requests, so that one that kills replicas takes no other with it.

For one event loop; nothing here knows Ray.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sid_ray.serving.contract import BusyError, LostError, Painted, Role, WantedImage
from sid_ray.serving.figures import Figures

AHEAD = 2  # batches per replica: one is made, the next lies ready
SPEED_HALF_LIFE_S = 10.0
LONGEST_RETRY_S = 600
Send = Callable[[Sequence[WantedImage]], Awaitable[Sequence[Painted]]]
Lane = tuple[Role, int | None, int]  # role, steps, and 0 or the number of the request asked again


class GoneError(Exception):
    """A replica ended before it had answered; the text says how."""


@dataclass(eq=False)
class PaintRequest:
    """A request, and what was painted of it so far, by place. ``again`` are places that a replica
    took along when it ended.
    """

    number: int
    wanted: Sequence[WantedImage]
    done: asyncio.Future[None]
    painted: dict[int, Painted] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def take(self, place: int, painted: Painted) -> None:
        self.painted[place] = painted
        if len(self.painted) == len(self.wanted) and not self.done.done():
            self.done.set_result(None)


Item = tuple[PaintRequest, int]  # a request, and the place of an image in it
Turns = dict[PaintRequest, deque[int]]  # who is next stands first, with what it still waits for


class Speed:
    """Images per second while there was work, the recent ones counting more."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now, self._at = now, now()
        self._images = self._seconds = 0.0

    def begin(self) -> None:
        """Work begins after none."""
        self._at = self._now()

    def add(self, images: int) -> None:
        spent = self._now() - self._at
        kept = 0.5 ** (spent / SPEED_HALF_LIFE_S)
        self._images = self._images * kept + images
        self._seconds = self._seconds * kept + spent
        self._at += spent

    @property
    def per_s(self) -> float:
        """0 where nothing was made yet."""
        return self._images / self._seconds if self._seconds > 0 else 0.0


class Dispatcher:
    """Packs what is asked for into batches for replicas.

    Args:
        send: makes one batch, of one role and one number of steps. Raises GoneError where the
            replica ended, UserError.
        most: images per batch, by role.
        queued: images of all requests that wait or are being made; more are refused.
        replicas: how many take batches.
        figures: told what happens.
    """

    def __init__(
        self,
        send: Send,
        most: Mapping[Role, int],
        queued: int,
        replicas: Callable[[], int] = lambda: 1,
        figures: Figures | None = None,
    ):
        self.send, self.most, self.queued, self.replicas = send, most, queued, replicas
        self.figures = figures or Figures()
        self.speed = Speed()
        self.held = 0  # images of unanswered requests
        self._lanes: dict[Lane, Turns] = {}
        self._numbers = itertools.count(1)
        self._under_way: dict[asyncio.Task[None], list[Item]] = {}
        self._stopped = ""  # why nothing is made

    async def paint(self, wanted: Sequence[WantedImage]) -> Sequence[Painted]:
        """In their order. Raises BusyError, LostError, UserError. Where it is cancelled, what has
        not begun is never made.
        """
        if self._stopped:
            raise LostError(self._stopped)
        if self.held + len(wanted) > self.queued:
            self.figures.refused(len(wanted))
            raise BusyError(self.retry_after_s(len(wanted)))
        done = asyncio.get_running_loop().create_future()
        asked = PaintRequest(next(self._numbers), wanted, done)
        if not self.held:
            self.speed.begin()
        self.held += len(wanted)
        for place in range(len(wanted)):
            self._put(asked, place)
        self.figures.waiting(self.held)
        self._pump()
        try:
            await done
        finally:
            done.cancel()  # where this was: batches find out that nobody waits
            self.held -= len(wanted)
            self.figures.waiting(self.held)
        self.figures.answered(len(wanted))
        return [asked.painted[place] for place in range(len(wanted))]

    def retry_after_s(self, images: int) -> int:
        """Whole seconds until there is likely room for so many."""
        over = self.held + images - self.queued
        per_s = self.speed.per_s
        return min(LONGEST_RETRY_S, max(1, math.ceil(over / per_s))) if per_s else 1

    @property
    def on_their_way(self) -> int:
        """Batches that were sent and are not back."""
        return len(self._under_way)

    def wake(self) -> None:
        """There may be more replicas than before."""
        self._stopped = ""
        self._pump()

    def stop(self, why: str) -> None:
        """There is no replica, and none on its way: who waits and who asks gets LostError with
        ``why``, until ``wake``. What was sent waits for a replica, too, and is called back.
        """
        self._stopped = why
        waiting = [asked for turns in self._lanes.values() for asked in turns]
        sent = [asked for batch in self._under_way.values() for asked, _ in batch]
        self._lanes.clear()
        for asked in (*waiting, *sent):
            asked.fail(LostError(why))
        for task in self._under_way:
            task.cancel()

    def _put(self, asked: PaintRequest, place: int, alone: bool = False) -> None:
        each = asked.wanted[place]
        lane = (each.role, each.steps, asked.number if alone else 0)
        self._lanes.setdefault(lane, {}).setdefault(asked, deque()).append(place)

    def _pump(self) -> None:
        """Sends batches while replicas have room."""
        while self.on_their_way < AHEAD * max(1, self.replicas()):
            batch = self._next_batch()
            if not batch:
                return
            task = asyncio.get_running_loop().create_task(self._make(batch))
            self._under_way[task] = batch
            task.add_done_callback(self._back)

    def _next_batch(self) -> list[Item]:
        """One image of each request in turn, of the lane that has waited longest."""
        for lane in list(self._lanes):
            turns = self._lanes.pop(lane)
            batch: list[Item] = []
            while turns and len(batch) < self.most[lane[0]]:
                asked = next(iter(turns))
                places = turns.pop(asked)
                if asked.done.done():  # failed, or nobody waits for it any more
                    continue
                batch.append((asked, places.popleft()))
                if places:
                    turns[asked] = places  # now the last one
            if turns:
                self._lanes[lane] = turns
            if batch:
                return batch
        return []

    async def _make(self, batch: list[Item]) -> None:
        """Has a batch made, and tells who waits for it."""
        try:
            painted = await self.send([asked.wanted[place] for asked, place in batch])
            for (asked, place), each in zip(batch, painted, strict=True):
                asked.take(place, each)
            self.speed.add(len(batch))
        except GoneError as error:
            self._ask_again(batch, str(error))
        except Exception as error:  # the same for whoever waits for it
            for asked, _ in batch:
                asked.fail(error)

    def _back(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._pump()

    def _ask_again(self, batch: list[Item], how: str) -> None:
        """Of a replica that ended: once, and then in no batch with other requests."""
        self.figures.lost(len(batch))
        for asked, place in batch:
            if place in asked.again:
                asked.fail(LostError(f"what made these images ended twice: {how}"))
            else:
                asked.again.add(place)
                self._put(asked, place, alone=True)
