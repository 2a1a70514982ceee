"""Who works on a run whose folder is in S3, where no file can be locked.

    driver.json   {host, pid, token, since, beat}: rewritten every 20 s while the driver lives

A start that finds a lease beaten within the last minute, by a driver that may be alive, is refused.
A lease that cannot be rewritten, because S3 is away, stops nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sid_ray.errors import UserError
from sid_ray.store import Store

LEASE = "driver.json"
BEAT_S, ALIVE_S = 20.0, 60.0
AGAIN_S = 2.0  # after a beat that did not get through
SETTLE_S = 0.3  # after which of two drivers that start at once the one whose lease stands goes on


def alive(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    if pid == os.getpid():
        return False  # one that is gone had the same, as the first of every container has
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def read_lease(store: Store) -> dict:
    """The lease that is there, empty for none or a damaged one. Raises StoreError."""
    try:
        found = json.loads(store.read_text(LEASE))
        return found if isinstance(found, dict) and {"host", "pid", "beat"} <= found.keys() else {}
    except (FileNotFoundError, ValueError):
        return {}


def check_free(store: Store) -> None:
    """Raises UserError where another driver that may be alive holds the lease, StoreError."""
    found = read_lease(store)
    if not found:
        return
    host, pid, age_s = found["host"], found["pid"], time.time() - found["beat"]
    if age_s > ALIVE_S or (host == socket.gethostname() and not alive(pid)):
        return
    raise UserError(
        f"run {store.name!r} is already being worked on by process {pid} on {host} (heard of "
        f"{max(0.0, age_s):.0f} s ago): stop it, wait {ALIVE_S - age_s:.0f} s if it is dead, or "
        "choose another --run name"
    )


class Beat(threading.Thread):
    """Keeps a lease alive; does ``also`` after every beat. Neither ever raises."""

    def __init__(self, store: Store, also: Callable[[], None] = lambda: None):
        super().__init__(daemon=True, name="lease")
        self.store, self.also, self._ended = store, also, threading.Event()
        self.lease = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": uuid.uuid4().hex,
            "since": time.time(),
        }

    def beat(self) -> None:
        """Raises StoreError."""
        self.store.write(LEASE, json.dumps(self.lease | {"beat": time.time()}) + "\n")

    def holds(self) -> bool:
        """Whether the lease that stands is this one's, or none does. Raises StoreError."""
        return read_lease(self.store).get("token") in (None, self.lease["token"])

    def run(self) -> None:
        wait_s = BEAT_S
        while not self._ended.wait(wait_s):
            wait_s = AGAIN_S
            with contextlib.suppress(OSError):
                if not self.holds():  # S3 was away, and meanwhile this one looked dead
                    print(f"{self.store}: another driver works on this run now", file=sys.stderr)
                    return
                self.beat()
                wait_s = BEAT_S
            with contextlib.suppress(OSError):
                self.also()

    def end(self) -> None:
        """Gives the lease back."""
        self._ended.set()
        if self.is_alive():
            self.join()
        with contextlib.suppress(OSError):
            if self.holds():
                self.store.remove(LEASE)


@contextmanager
def only_lease(store: Store, also: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a run's lease. Raises UserError when another driver holds it, StoreError at its start.

    ``also`` is done every 20 s beside it.
    """
    check_free(store)
    beat = Beat(store, also)
    beat.beat()
    time.sleep(SETTLE_S)
    if not beat.holds():
        check_free(store)
    beat.start()
    try:
        yield
    finally:
        beat.end()
