"""What a running group of workers hears from outside: pause for a resize, or a node will go."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray

NOTHING, RESIZE, PREEMPTED, LEASE_ENDS = 0, 1, 2, 3
NO_LEASE = "the driver's lease of the run ends"  # asked for so, nothing waits for storage
BEAT_S = 0.25


class PausedError(RuntimeError):
    """The workers have saved their state and stopped by themselves, to start again elsewhere."""


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
