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

from sid_ray.ray_setup.environment import ENDINGS
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


class Stop:
    """The handler of what ends a sweep: its trials end first, Tune behind them.

    Tune listens to SIGUSR1, which SLURM sends too: ``listen`` takes the signal back, and remembers
    Tune's handler.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None]):
        self.folder, self.tell, self.stopped = folder, tell, list[bool]()
        self.tunes: Any = None

    def __call__(self, number: int, frame: Any) -> None:
        if self.stopped:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # told twice of the same: the terminal is closed, the time is up
        self.listen()
        self.stopped.append(True)
        why = "" if number == signal.SIGINT else f" ({signal.Signals(number).name})"
        self.tell(f"stopping{why}: the trials save their state; Ctrl-C again leaves at once")
        end_trials(self.folder)
        if self.tunes is None:
            raise KeyboardInterrupt  # Tune does not listen yet
        self.tunes(signal.SIGUSR1, frame)

    def listen(self) -> None:
        """For the main thread, now and then."""
        found = signal.getsignal(signal.SIGUSR1)
        if found is not self:
            self.tunes = found
            signal.signal(signal.SIGUSR1, self)


STOPS: dict[str, Stop] = {}  # by the sweep's folder


@contextlib.contextmanager
def stopping_in_order(folder: Path, tell: Callable[[str], None]) -> Iterator[list[bool]]:
    """Ctrl-C or one of ENDINGS within ends the trials first, Tune behind them; yields a list that
    then holds True.

    Tune's own handler, which is switched off in runner.py, would kill the trials' actors after
    seconds. A second Ctrl-C raises KeyboardInterrupt.
    """
    shutil.rmtree(folder / PIDS, ignore_errors=True)  # of drivers that were killed
    stop = STOPS[str(folder)] = Stop(folder, tell)
    # Ray's own handler of SIGTERM, set by ray.init, would leave at once.
    heard = [signal.SIGINT, *ENDINGS]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        heard.remove(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield stop.stopped
    finally:
        del STOPS[str(folder)]
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
