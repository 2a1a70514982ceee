"""Samples of one stream, read and decoded ahead of the training step that asks for them.

What a rank will need is known for as long as the run lasts: its logical groups' positions in an
Order. So row groups are read in the order of their need, as far ahead as memory allows, and the
samples of the next iterations are put together in a thread beside the step:

    RowGroups --pool of threads--> row groups held --one thread--> samples of an iteration --> step
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sid_ray.data.decode import Decoded
from sid_ray.data.order import Located, Order
from sid_ray.data.row_groups import RowGroups
from sid_ray.groups import GroupPlan

THREADS = 4  # that read row groups
READY = 2  # iterations that are decoded ahead of the one that is trained
HORIZON = 64  # iterations whose row groups are looked for, where memory allows
GIB = 2**30
Gather = Callable[[Mapping[int, Any], Located], Decoded]


class Need(NamedTuple):
    """What one iteration needs: sorted positions [B], where they lie, which row groups."""

    positions: np.ndarray
    located: Located
    row_groups: tuple[int, ...]


class StreamReader:
    """The samples that one rank needs of one stream.

    Args:
        row_groups: where they are read.
        order: the stream; its row groups are those of ``row_groups``.
        columns: what is read.
        gather: row groups and places -> samples.
        plan, rank: which positions are this rank's.
        cache_bytes: Arrow buffers held at most, unless one iteration alone needs more.
        until: nothing is read for iterations from here on.
        tell: told in a line where one iteration needs more.
    """

    def __init__(
        self,
        row_groups: RowGroups,
        order: Order,
        columns: tuple[str, ...],
        gather: Gather,
        plan: GroupPlan,
        rank: int = 0,
        cache_bytes: float = 4 * GIB,
        until: float = float("inf"),
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.row_groups, self.order, self.columns, self.gather = row_groups, order, columns, gather
        self.batch_size, self.until = plan.batch_size, until
        groups = np.arange(rank, plan.num_groups, plan.world_size)[:, None] * plan.group_size
        self._inside = (groups + np.arange(plan.group_size)).ravel()
        self._bound, self._tell, self._told = cache_bytes, tell, False
        self.stalled_s = 0.0  # that ``samples`` has waited
        self._now = -1  # images seen by the step that asks
        self._needs: dict[int, Need] = {}
        self._held: dict[int, Future[Any]] = {}  # in the order of their last use
        self._sizes: dict[int, int] = {}
        self._ready: dict[int, Decoded] = {}
        self._error: tuple[int, BaseException] | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(THREADS, "data-reader")
        self._thread = threading.Thread(target=self._run, name="data-decoder", daemon=True)
        self._thread.start()

    # What a step calls --------------------------------------------------------------------------

    def go_to(self, images_seen: int) -> None:
        """Training is here now: what lies before is done with; a jump begins anew."""
        with self._changed:
            self._go_to(images_seen)

    def wait(self, images_seen: int, timeout_s: float | None = None) -> bool:
        """Whether the iteration's samples are there, after at most ``timeout_s``.

        Raises what went wrong while reading them: DamagedDataError; RuntimeError where another
        thread has gone elsewhere meanwhile, or closed the reader.
        """
        with self._changed:
            self._go_to(images_seen)
            self._changed.wait_for(lambda: self._settled(images_seen), timeout_s)
            if images_seen in self._ready:
                return True
            if self._error is not None:
                raise self._error[1]
            if self._closed:
                raise RuntimeError("the reader is closed")
            if images_seen not in self._ahead():
                raise RuntimeError(f"nothing is read at {images_seen:,} images any more")
            return False

    def samples(self, images_seen: int, positions: np.ndarray) -> Decoded:
        """Those at ``positions`` [B], which are the iteration's and this rank's."""
        began = time.monotonic()
        self.wait(images_seen)
        self.stalled_s += time.monotonic() - began
        with self._changed:
            mine, found = self._need(images_seen).positions, self._ready[images_seen]
        index = np.searchsorted(mine, positions)
        if not np.array_equal(mine[np.minimum(index, len(mine) - 1)], positions):
            raise ValueError(f"positions that are not this rank's at {images_seen:,} images")
        first = int(index[0]) if len(index) else 0
        if np.array_equal(index, np.arange(first, first + len(index))):  # as a rule: no copy
            return found.take(slice(first, first + len(index)))
        return found.take(index)

    def close(self) -> None:
        """Ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._thread.join(timeout=10)
        self._held.clear()

    # The thread beside it -----------------------------------------------------------------------

    def _settled(self, images_seen: int) -> bool:
        failed = self._error is not None and self._error[0] <= images_seen
        left = images_seen not in self._ahead()  # nobody will ever read it
        return images_seen in self._ready or failed or left or self._closed

    def _go_to(self, images_seen: int) -> None:
        if images_seen == self._now:
            return
        if images_seen != self._now + self.batch_size:
            self._needs.clear()
            self._ready.clear()
            self._error = None
        for passed in [seen for seen in self._ready if seen < images_seen]:
            del self._ready[passed]
        for passed in [seen for seen in self._needs if seen < images_seen]:
            del self._needs[passed]
        self._now = images_seen
        self._changed.notify_all()

    def _run(self) -> None:
        """Whatever goes wrong ends up where a step waits, not in a thread that nobody sees."""
        try:
            self._decode_all()
        except Exception as error:
            with self._changed:
                self._error = -1, error
                self._changed.notify_all()

    def _decode_all(self) -> None:
        """Decodes the next iterations until it is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                if self._closed:
                    return
                target = self._next()
                assert target is not None
                need = self._need(target)
                futures = {group: self._ask(group) for group in need.row_groups}
                self._check_bound(futures)
                self._read_ahead(target)
            found: Decoded | BaseException
            try:
                found = self.gather({g: f.result() for g, f in futures.items()}, need.located)
            except (Exception, CancelledError) as error:
                found = error
            with self._changed:
                if target not in self._ahead():
                    continue  # training has jumped meanwhile
                if isinstance(found, BaseException):
                    self._error = target, found
                else:
                    self._ready[target] = found
                self._changed.notify_all()

    def _ahead(self) -> range:
        """The iterations to decode: where training is, and the next."""
        return range(self._now, self._now + READY * self.batch_size + 1, self.batch_size)

    def _next(self) -> int | None:
        """The iteration to decode next; None while there is nothing to do."""
        if self._now < 0 or self._error is not None:
            return None
        wanted = (n for n in self._ahead() if n < self.until or n == self._now)
        return next((n for n in wanted if n not in self._ready), None)

    def _need(self, images_seen: int) -> Need:
        if images_seen not in self._needs:
            positions = images_seen + self._inside
            located = self.order.locate(positions)
            # In the order of the groups: the first that is trained is the first that is read.
            groups, first = np.unique(located.row_group, return_index=True)
            needed = tuple(groups[np.argsort(first)].tolist())
            self._needs[images_seen] = Need(positions, located, needed)
        return self._needs[images_seen]

    def _ask(self, row_group: int) -> Future[Any]:
        """A row group that is held, or from now on being read; the last of those held."""
        future = self._held.pop(row_group, None)
        if future is None or (future.done() and future.exception() is not None):
            future = self._pool.submit(self._read, row_group)
        self._held[row_group] = future
        return future

    def _read_ahead(self, target: int) -> None:
        """Asks for what is needed from ``target`` on, in that order, while there is room for it.

        Room is made by what is needed last, or not at all that is known: the oldest first.
        """
        end = int(min(target + (HORIZON + 1) * self.batch_size, self.until))
        coming: dict[int, float] = {}  # row group -> first iteration that needs it, in that order
        for images_seen in range(target, end, self.batch_size):
            for group in self._need(images_seen).row_groups:
                coming.setdefault(group, images_seen)
        leaving = sorted(self._held, key=lambda group: -coming.get(group, float("inf")))[::-1]
        total = sum(map(self._bytes, self._held))

        def room(more: int, needed_at: float) -> bool:
            nonlocal total
            while total + more > self._bound and leaving:
                group = leaving[-1]
                if coming.get(group, float("inf")) <= needed_at:
                    break
                leaving.pop()
                total -= self._bytes(group)
                self._held.pop(group).cancel()
            return total + more <= self._bound

        room(0, target)
        for group, needed_at in coming.items():
            if group in self._held:
                continue
            size = self._bytes(group)
            if not room(size, needed_at):
                return
            self._ask(group)
            total += size

    def _bytes(self, row_group: int) -> int:
        """What a row group takes: expected, and known once it was read."""
        if row_group not in self._sizes:
            self._sizes[row_group] = self.row_groups.expected_bytes(row_group, self.columns)
        return self._sizes[row_group]

    def _read(self, row_group: int) -> Any:
        table = self.row_groups.read(row_group, self.columns)
        self._sizes[row_group] = table.nbytes
        return table

    def _check_bound(self, needed: Mapping[int, Any]) -> None:
        """Tells, once, where one iteration needs more memory than it may."""
        total = sum(map(self._bytes, needed))
        if total > self._bound and not self._told:
            self._told = True
            self._tell(
                f"the data cache takes {total / GIB:.3g} GiB: one iteration needs {len(needed)} "
                f"row groups at once; resources.data_cache_gib leaves {self._bound / GIB:.3g}"
            )
