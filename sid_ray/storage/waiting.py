"""A run's lease as a start finds it that would like to have the next: free, or to be waited for."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError
from sid_ray.storage.errors import retrying
from sid_ray.storage.fence import lease_name, lease_numbers, read_lease
from sid_ray.storage.store import Store

TERM_S = 90.0
LOOK_S = 1.0  # between two looks at another driver's lease
ASK_S = 5.0  # between two questions whether its driver is gone
READ_S = 20.0  # for a store that does not answer while a start waits

Gone = Callable[[Mapping[str, Any]], bool]
"""Whether a lease's driver is known to be gone."""


def clock() -> float:
    """Seconds that also pass while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot_id() -> str:
    """Names this start of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def place() -> str:
    """Where a process number means one process: this start of the machine, this container."""
    try:
        return f"{boot_id()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return boot_id()


def alive(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    if pid == os.getpid():
        return False  # one that is gone had the same
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@dataclass(frozen=True)
class HeldLease:
    """A lease as another driver finds it. ``heard``: when it was renewed, by the store's clock."""

    number: int
    values: Mapping[str, Any]
    heard: float

    @property
    def token(self) -> Any:
        return self.values.get("token")

    @property
    def term_s(self) -> float:
        return float(self.values.get("term_s", TERM_S))

    @property
    def age_s(self) -> float:
        return max(0.0, time.time() - self.heard)

    @property
    def driver(self) -> str:
        return f"process {self.values.get('pid', '?')} on {self.values.get('host', '?')}"

    def is_free(self, locks: str, gone: Gone) -> bool:
        """Whether its driver gave it back, is known to be dead, or has let its time run out.

        ``locks`` begins the names of locks that only this process can hold now: who has held one
        is dead.
        """
        values = self.values
        if values.get("ended") or self.age_s > self.term_s:
            return True
        if locks and str(values.get("lock", "")).startswith(locks):
            return True
        if values.get("place") == place():
            return not alive(int(values["pid"]))
        return gone(values)

    @property
    def is_here(self) -> bool:
        """Whether its process is known to live."""
        return self.values.get("place") == place() and alive(int(self.values["pid"]))

    def refusal(self, run: Store) -> UserError:
        return UserError(
            f"run {run.name!r} is already being worked on by {self.driver} (lease {self.number}, "
            f"heard of {self.age_s:.0f} s ago): stop it, or choose another --run name"
        )


def newest_lease(store: Store) -> HeldLease | None:
    """The lease with the largest number. Raises StoreError."""
    while True:
        times = store.times()
        for number in lease_numbers(times):
            try:
                return HeldLease(number, read_lease(store, number), times[lease_name(number)])
            except FileNotFoundError:
                break  # a newer one has taken its place
        else:
            return None


def wait_until_free(store: Store, found: HeldLease, locks: str, gone: Gone) -> None:
    """Returns when a lease is free. Raises UserError where its driver lives, StoreError.

    A driver that lives is known by its process, or shows itself by renewing its lease.
    """
    began, told, asked_at = clock(), False, float("-inf")
    first = found

    def seldom(values: Mapping[str, Any]) -> bool:
        nonlocal asked_at
        if clock() - asked_at < ASK_S:
            return False
        asked_at = clock()
        return gone(values)

    while not found.is_free(locks, seldom):
        renewed = (found.token, found.heard) != (first.token, first.heard)
        if found.is_here or (renewed and not found.values.get("ended")):
            raise found.refusal(store)
        if clock() - began > found.term_s:
            return  # whatever the clocks say: it was not renewed while this one looked
        if not told:
            told = True
            print(
                f"waiting up to {found.term_s - found.age_s:.0f} s for the lease of {found.driver}"
                f", which was heard of {found.age_s:.0f} s ago and may be dead; Ctrl-C to stop",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(LOOK_S)
        newest = retrying(lambda: newest_lease(store), give_up_s=READ_S)
        if newest is None:
            return
        found = newest
