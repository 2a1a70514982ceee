"""Ctrl-C of a sweep: its trials save their state and end, then Ray Tune stops."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sid_ray.sweep.segment import END_S, PIDS

LOOK_S = 0.1


def running(folder: Path) -> list[int]:
    """Processes of a sweep's trials, by the notes that their actors leave on this machine."""
    found = []
    for note in sorted((folder / PIDS).glob("*")):
        with contextlib.suppress(OSError, ValueError):
            pid = int(note.read_text())
            os.kill(pid, 0)
            found.append(pid)
    return found


def end_trials(folder: Path, patience_s: float = END_S) -> None:
    """Asks every trial's process to end, as Ctrl-C does, and waits until none is left."""
    for pid in running(folder):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGINT)
    until = time.monotonic() + patience_s
    while running(folder) and time.monotonic() < until:
        time.sleep(LOOK_S)


@contextlib.contextmanager
def in_order(folder: Path, tell: Callable[[str], None]) -> Iterator[list[bool]]:
    """Ctrl-C or SIGTERM within ends the trials first, Tune behind them; yields a list that then
    holds True.

    Tune's own handler, which is switched off in runner.py, would kill the trials' actors after
    seconds. It hears of SIGUSR1 too. A second Ctrl-C raises KeyboardInterrupt.
    """
    stopped: list[bool] = []
    shutil.rmtree(folder / PIDS, ignore_errors=True)  # of drivers that were killed

    def stop(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(True)
        tell("stopping: the trials save their state; Ctrl-C again leaves at once")
        end_trials(folder)
        os.kill(os.getpid(), signal.SIGUSR1)

    def too_early(number: int, frame: Any) -> None:
        raise KeyboardInterrupt  # Tune does not listen yet

    # SIGTERM: `ray job stop`. Ray's own handler, set by ray.init, would leave at once.
    listening = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: too_early}
    before = {number: signal.signal(number, handler) for number, handler in listening.items()}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
