"""What a running group of workers hears from outside, and what it says where it stops by itself."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import ray

NOTHING, RESIZE, PREEMPTED, LEASE_ENDS = 0, 1, 2, 3
NO_LEASE = "the driver's lease of the run ends"  # asked for so, nothing waits for storage
BEAT_S = 0.25


class PausedError(RuntimeError):
    """The workers have saved their state and stopped by themselves, to start again elsewhere."""


class SmallerPassesError(RuntimeError):
    """A rank ran out of memory: all start again with smaller passes, for the same numbers."""


class OutOfMemoryAgainError(RuntimeError):
    """A rank ran out of memory, and smaller passes were tried, or there are none."""


# What the others say when a rank is gone: gloo's pairs, NCCL's communicators.
LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL communicator was abort",
    "ncclRemoteError",
    "remote process exited",
)


def lost_peer(error: object) -> bool:
    """Whether a rank's error only says that another one is gone."""
    return any(text in str(error) for text in LOST_PEER)


def failed_in_words(rank: int, error: BaseException) -> str:
    """A rank's own failure in a few words: a person reads it above the progress line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return f"worker {rank} failed: {text}"[:200]


def tell_failure(tracker: Any, rank: int, error: BaseException) -> None:
    """Has the reason known before peers fail for want of this rank, and their errors hide it."""
    if lost_peer(error):
        return
    told = isinstance(error, SmallerPassesError | OutOfMemoryAgainError)
    reason = str(error) if told else failed_in_words(rank, error)
    with suppress(ray.exceptions.RayError):
        ray.get(tracker.failed.remote(reason))


class Heartbeat(threading.Thread):
    """Rank 0's line to the tracker: tells the newest step, hears whether to pause."""

    def __init__(self, tracker: Any):
        super().__init__(daemon=True, name="heartbeat")
        self._tracker, self._newest = tracker, (0, 0.0)
        self.asked = ""  # why to pause
        self._ended = threading.Event()

    def stepped(self, images_seen: int) -> None:
        first, self._newest = self._newest[0] == 0, (images_seen, time.time())
        if first:  # ends an interruption: told at once and by itself
            self._tracker.beat.remote(*self._newest)

    def run(self) -> None:
        while not self._ended.is_set():
            self.beat()
            self._ended.wait(BEAT_S)

    def beat(self) -> None:
        images_seen, at = self._newest
        try:
            self.asked = ray.get(self._tracker.beat.remote(images_seen, at))
        except ray.exceptions.RayError:
            self._ended.set()  # the driver is gone, and soon this worker is

    def end(self) -> None:
        """Tells the last step and stops listening."""
        self._ended.set()
        self.join()
        self.beat()
