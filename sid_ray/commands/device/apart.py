"""A check of the list in a process of its own, which is ended when its time is over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from sid_ray.commands.benching.processes import search_path
from sid_ray.commands.device.redact import without_places
from sid_ray.commands.device.rows import FAILED, DeviceRow, Rig
from sid_ray.storage.durable import read_values

CHILD = "sid_ray.commands.device.child"
LOOK_S = 0.1
END_S = 10.0  # from a kill to the end of a process
LAST_LINES = 3  # of what a check that crashed has printed


@dataclass(frozen=True)
class DeviceCheck:
    """A check of a machine.

    Args:
        name: in the report and behind --only.
        looks_at: what it verifies, in a line.
        look: place of its function within sid_ray, MODULE:NAME: of a Rig, yields rows.
        share_s: seconds that are kept for it. It may take longer by what others have left.
    """

    name: str
    looks_at: str
    look: str
    share_s: float


def rows_apart(
    check: DeviceCheck, rig: Rig, folder: Path, child: str = CHILD
) -> Iterator[DeviceRow]:
    """The rows of a check as they come; how it ended, where it did not end by itself.

    ``folder`` is for its rows and what it prints; ``child`` the module that runs it.
    """
    rows, log = folder / f"{check.name}.jsonl", folder / f"{check.name}.log"
    rows.touch()
    seen = 0
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", child, check.look, rig.to_json(),
             str(rows)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=os.environ | {"PYTHONPATH": search_path()},
        )  # fmt: skip
    try:
        ends = time.monotonic() + rig.seconds
        while True:
            over = process.poll() is not None  # before rows are read: none is missed
            found = read_values(rows)
            for values in found[seen:]:
                yield DeviceRow(**values)
            seen = len(found)
            if over:
                break
            if time.monotonic() > ends:
                yield DeviceRow(
                    "the check itself",
                    f"no end within {rig.seconds:.0f} s: it was stopped{last_words(log)}",
                    f"{rig.seconds:.0f} s",
                    FAILED,
                )
                return
            time.sleep(LOOK_S)
    finally:
        end_tree(process)
    if process.returncode:
        number = process.returncode
        how = f"ended by signal {-number}" if number < 0 else f"ended with code {number}"
        yield DeviceRow("the check itself", f"{how}{last_words(log)}", verdict=FAILED)


def end_tree(process: subprocess.Popen) -> None:
    """Kills all that is left of a check: itself, and what it has started.

    Where it has ended by itself as well: ranks that it started may hang in a collective, and would
    keep their GPUs from all later checks. ``process`` leads a session of its own.
    """
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    with contextlib.suppress(ProcessLookupError):  # none is left
        os.killpg(process.pid, signal.SIGKILL)
    for child in children:  # that have a session of their own
        if child.is_running():  # and not another process of that number
            child.kill()
    process.wait()
    psutil.wait_procs(children, timeout=END_S)


def last_words(log: Path) -> str:
    """The end of what a check has printed, for its row."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    lines = [line for line in lines if line][-LAST_LINES:]
    return without_places(f"; its last lines: {' | '.join(lines)}")[:500] if lines else ""
