"""Waiting for something to happen; loads nothing heavy."""

import time


def wait_for(condition, what: str, patience_s: float = 30.0):
    """What ``condition()`` returns once it is true. Raises TimeoutError."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what}: not within {patience_s:.0f} s")
