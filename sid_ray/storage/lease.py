"""Who works on a run: one driver at a time, on whatever hosts, with its folder on a disk or in S3.

    driver_000007.json   {host, pid, place, token, term_s, ...}: the run's seventh lease

A start takes the number after the newest one by making a file that must not be there yet
(Store.write_new), and then renews it: it writes the file again every few seconds. A lease that was
not given back is free for the next driver when its process is known to be dead, or when it was not
renewed for ``term_s`` seconds. So a driver that cannot renew its lease stops before that time is
over; and should it go on all the same, what it writes carries its number, and does not count
(fence.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sid_ray.storage.errors import NotExclusiveError
from sid_ray.storage.fence import (
    Fence,
    known_number,
    lease_name,
    lease_numbers,
    next_fence,
    read_lease,
)
from sid_ray.storage.store import Store
from sid_ray.storage.waiting import TERM_S, Gone, clock, newest_lease, place, wait_until_free

RENEWALS = 9  # in a term
AGAIN_S = 2.0  # after a renewal that did not get through
STOP_S = 20.0  # of a term, for stopping what runs under a lease that could not be renewed
SETTLE_S = 0.5  # where puts are not conditional: after it the lease that stands is the one


class LeaseLostError(Exception):
    """Another driver works on the run, or may soon: this one must stop. Says what to do."""


def take(store: Store, term_s: float, lock: str, gone: Gone) -> Lease:
    """The next lease of a run. Raises UserError where another driver has it, StoreError."""
    values = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "place": place(),
        "lock": lock,
        "token": uuid.uuid4().hex,
        "term_s": term_s,
        "since": time.time(),
    }
    locks = lock.partition(" ")[0] if store.is_local else lock
    while True:
        number = known_number(store)  # before the look: a lease taken since has the same next one
        newest = newest_lease(store)
        if newest is not None:
            wait_until_free(store, newest, locks, gone)
            number = max(number, newest.number)
        number += 1
        began = clock()
        if made(store, number, values):
            break
    lease = Lease(store, number, values, began)
    lease.open()
    return lease


def made(store: Store, number: int, values: Mapping[str, Any]) -> bool:
    """Makes a lease's file. Returns False where another driver was sooner. Raises StoreError."""
    name, text = lease_name(number), json.dumps(dict(values)) + "\n"
    try:
        store.write_new(name, text)
    except NotExclusiveError:
        if store.size(name) is None:
            store.write(name, text)
        time.sleep(SETTLE_S)
    with contextlib.suppress(FileNotFoundError):
        mine = read_lease(store, number).get("token") == values["token"]
        return mine and max(lease_numbers(store.times()), default=0) == number
    return False


class Lease(threading.Thread):
    """A lease that is held: a thread renews it, ``check`` says whether to go on."""

    def __init__(self, store: Store, number: int, values: Mapping[str, Any], renewed_at: float):
        super().__init__(daemon=True, name="lease")
        self.store, self.number = store, number
        self.fence = Fence(number)
        self.taken_over = ""  # by whom
        self._values, self._written = dict(values), False
        self._term_s, self._renewed_at = float(values["term_s"]), renewed_at
        self._trouble = ""  # why it could not be renewed
        self._lock = threading.Lock()
        self._wake, self._ended = threading.Event(), threading.Event()

    def open(self) -> None:
        """Notes what the run has now; older leases go. Raises StoreError."""
        self.fence = next_fence(self.store, self.number)
        assert self.fence.base is not None
        self._values |= {"base": sorted(self.fence.base), "heirs": sorted(self.fence.heirs)}
        self._write()
        for number in lease_numbers(self.store.times()):
            if number < self.number:
                self.store.remove(lease_name(number))

    def note(self, **values: Any) -> None:
        """Adds something that the next driver shall know; written soon."""
        with self._lock:
            self._values |= values
            self._written = False
        self._wake.set()

    @property
    def token(self) -> Any:
        return self._values["token"]

    @property
    def left_s(self) -> float:
        """For how long no other driver can have taken it; 0 where one may have."""
        if self.taken_over:
            return 0.0
        return max(0.0, self._renewed_at + self._term_s - clock())

    @property
    def stop_s(self) -> float:
        """How much of its time is kept for stopping."""
        return min(STOP_S, self._term_s / 3)

    def check(self) -> None:
        """Raises LeaseLostError where this driver must stop."""
        if self.taken_over:
            raise LeaseLostError(
                f"{self.taken_over} has taken over run {self.store.name!r}, as this driver had not "
                "renewed its lease in time: what this one wrote since then does not count. Leave "
                "the run to the other one"
            )
        if self.left_s <= self.stop_s:
            raise LeaseLostError(
                f"the lease of run {self.store.name!r} could not be renewed for "
                f"{clock() - self._renewed_at:.0f} s ({self._trouble or 'no answer'}), and another "
                "driver may take the run over soon: the workers' state is kept on local disks. "
                "Start the same command again when the run's folder can be written"
            )

    def run(self) -> None:
        wait_s = self._term_s / RENEWALS
        while True:
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._ended.is_set():
                return
            try:
                self._renew()
                wait_s = self._term_s / RENEWALS
            except OSError as error:
                self._trouble = str(error.strerror or error)
                wait_s = min(AGAIN_S, self._term_s / RENEWALS)
            if self.taken_over:
                return

    def _renew(self) -> None:
        """Raises OSError."""
        began = clock()
        newest = newest_lease(self.store)
        if newest is not None and newest.number >= self.number and newest.token != self.token:
            self.taken_over = newest.driver
            return
        there = newest is not None and newest.number == self.number
        if self.store.is_local and self._written and there:  # needs no space on a full disk
            os.utime(self.store.folder / lease_name(self.number))
        else:
            self._write()
        self._renewed_at = max(began, self._renewed_at)

    def _write(self) -> None:
        """Raises OSError."""
        if self.store.is_local and not self.store.folder.is_dir():
            raise FileNotFoundError(f"{self.store} is not there")  # do not write in its place
        with self._lock:
            text, self._written = json.dumps(self._values) + "\n", True
        try:
            self.store.write(lease_name(self.number), text)
        except OSError:
            self._written = False
            raise

    def end(self) -> None:
        """Gives the lease back, where it is still this driver's."""
        self._ended.set()
        self._wake.set()
        if self.left_s <= self.stop_s:
            return  # the store may not answer, and time is short
        self.join()
        with contextlib.suppress(OSError):
            self.note(ended=True)
            self._renew()


@contextmanager
def only_lease(
    store: Store, term_s: float = TERM_S, lock: str = "", gone: Gone = lambda values: False
) -> Iterator[Lease]:
    """Holds a run's lease. Raises UserError when another driver has it, StoreError at its start.

    Waits, and says so, for the lease of a driver that may be dead.

    Args:
        lock: names the lock that this process holds, by run_folder.only_process: on a disk the
            run's own, which nobody else on this machine can have then.
        gone: may know that a lease's driver is.
    """
    lease = take(store, term_s, lock, gone)
    lease.start()
    try:
        yield lease
    finally:
        lease.end()
