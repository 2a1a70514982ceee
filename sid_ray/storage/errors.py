"""What can go wrong with a store, in one line for the person who reads it, and waiting for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
RETRY_S = (0.5, 1, 2, 5, 10, 30)  # between tries of a store that fails; the last one repeats


class StoreError(OSError):
    """A store could not do what was asked; the text says which and why."""


class MissingFileError(StoreError, FileNotFoundError):
    """There is no such file, or no such bucket."""


class DeniedStoreError(StoreError):
    """The store knows the credentials and refuses, or there are none."""


class UnreachableStoreError(StoreError):
    """The store did not answer, or not now."""


class FullStoreError(StoreError):
    """There is no space left."""


class NotExclusiveError(StoreError):
    """The store cannot say whether a file was there, or changed: it puts without a condition."""


def pause_s(tries: int) -> float:
    """How long to wait after so many tries that failed."""
    return RETRY_S[min(tries, len(RETRY_S) - 1)]


def retrying(
    action: Callable[[], T],
    tell: Callable[[str], None] = lambda text: None,
    give_up_s: float = float("inf"),
    closing: threading.Event | None = None,
) -> T:
    """Does it again and again while the store cannot be reached; says so, and when it is back.

    Raises the last UnreachableStoreError after ``give_up_s`` or when ``closing`` is set.
    """
    began, tries = time.monotonic(), 0
    while True:
        try:
            found = action()
        except UnreachableStoreError as error:
            wait_s = pause_s(tries)
            if time.monotonic() - began + wait_s > give_up_s:
                raise
            if tries == 0:
                tell(f"{error}; trying again")
            tries += 1
            if closing is None:
                time.sleep(wait_s)
            elif closing.wait(wait_s):
                raise
        else:
            if tries:
                tell(f"storage is back after {time.monotonic() - began:.0f} s")
            return found
