"""The processes of one setting as the command sees them: started, asked, ended in any case."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import connection
from pathlib import Path
from typing import Any

import sid_ray
from sid_ray.commands.benching.rank import LOUD, Side
from sid_ray.commands.benching.short import Short
from sid_ray.weights.description import ModelDescription

RANK = "from sid_ray.commands.benching.rank import main; main()"
END_S = 5.0  # from the end of a pipe to that of its process


class SettingFailedError(Exception):
    """A setting cannot be measured; the text is one line. ``late``: for want of time."""

    def __init__(self, reason: str, late: bool = False):
        super().__init__(reason)
        self.late = late


class Processes:
    """One process per rank of a setting. A context: behind it none of them is there.

    Raises SettingFailedError, as every question does, where a rank fails, dies or takes too long;
    all ranks are gone then.
    """

    def __init__(self, short: Short, description: ModelDescription, world_size: int, on_gpu: bool):
        self.folder = tempfile.mkdtemp(prefix="sid_ray_bench_")
        side = Side(short, description, world_size, on_gpu, self.folder)
        self.alive = True
        self.pipes: list[connection.Connection] = []
        self.ranks: list[subprocess.Popen] = []
        try:
            for rank in range(world_size):
                self._start(side, rank)
        except BaseException:
            self.kill()
            raise

    def _start(self, side: Side, rank: int) -> None:
        ours, theirs = connection.Pipe()
        self.pipes.append(ours)
        with theirs:
            # A session of its own: Ctrl-C is this process's, which ends all of the session.
            self.ranks.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", RANK, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=None if os.environ.get(LOUD) else subprocess.DEVNULL,
                    stderr=None if os.environ.get(LOUD) else subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": search_path()},
                )
            )
        ours.send((side, rank))

    def ready(self, deadline: float) -> None:
        """Waits until everything is built, to a time of the monotonic clock."""
        self._answers(deadline)

    def ask(self, what: str, deadline: float) -> list[Any]:
        """The answer of each rank to the name of a method of ``Rank``."""
        for pipe in self.pipes:
            with contextlib.suppress(OSError):  # a dead one is found below
                pipe.send(what)
        return self._answers(deadline)

    def _answers(self, deadline: float) -> list[Any]:
        waiting = dict(zip(self.pipes, range(len(self.pipes)), strict=True))
        found: dict[int, Any] = {}
        try:
            while waiting:
                left = deadline - time.monotonic()
                there = connection.wait(list(waiting), max(left, 0))
                if not there:
                    raise SettingFailedError("it took longer than there was time for", late=True)
                for pipe in there:
                    rank = waiting.pop(pipe)  # type: ignore[call-overload]
                    found[rank] = self._answer(rank)
        except BaseException:
            self.kill()
            raise
        return [found[rank] for rank in range(len(self.pipes))]

    def _answer(self, rank: int) -> Any:
        try:
            fine, answer = self.pipes[rank].recv()
        except (EOFError, OSError):
            raise SettingFailedError(ended(self.ranks[rank].wait(END_S))) from None
        if not fine:
            raise SettingFailedError(answer)
        return answer

    def kill(self) -> None:
        """Ends all ranks and what they started."""
        self.alive = False
        for process in self.ranks:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.ranks:
            process.wait()
        for pipe in self.pipes:
            pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def search_path() -> str:
    """Where a rank finds this very package, whatever folder the command was called in."""
    own = str(Path(sid_ray.__file__).parent.parent)
    return os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))


def ended(code: int) -> str:
    """What an exit code says."""
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        more = ", as when a machine has no memory left" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{more}"
    return f"its process ended by itself (exit code {code})"
