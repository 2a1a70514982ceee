"""What a person sees: one progress display, and a file for everything else.

Libraries print much, some of it from C++. While a run works, file descriptors 1 and 2 point to its
log file, and only this module writes to the terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from sid_ray.metrics.names import EVAL, bare, leads
from sid_ray.storage.outlet import Outlet

# Seconds between two progress lines where the output is not a terminal: a run of days would else
# write tens of thousands into a job's log.
PLAIN_INTERVAL_S, PLAIN_INTERVAL_LATER_S = 10.0, 60.0
LATER_S = 600.0  # after which they are fewer


@contextmanager
def quiet_output(log: Path) -> Iterator[Console]:
    """A Console on the real output; all other output of the process goes to the end of ``log``."""
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = Outlet(os.fdopen(os.dup(1), "w", buffering=1, errors="backslashreplace"), log)
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield Console(file=cast(TextIO, terminal), highlight=False, soft_wrap=not terminal.isatty())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, original in zip((1, 2), saved, strict=True):
            os.dup2(original, target)
            os.close(original)
        terminal.close()


def duration(seconds: float) -> str:
    """1:05 or 2:03:09."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


class Display:
    """The progress of one run: a live line on a terminal, else a plain line now and then."""

    def __init__(self, console: Console, total_images: int):
        self.console, self.total = console, total_images
        self.live = console.is_terminal
        self.last_line = ""
        self.began = time.monotonic()
        self.last_time = -PLAIN_INTERVAL_S
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[info]}"),
        )
        # Rich would fetch what libraries print back from the log to the terminal.
        self.progress = Progress(
            *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self.task: TaskID = self.progress.add_task("starting", total=total_images, info="")

    def __enter__(self) -> Display:
        if self.live:
            self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self.progress.stop()

    def update(self, phase: str, metrics: Mapping[str, float], events: Sequence[str]) -> None:
        """Shows events once and the newest numbers."""
        for event in events:
            self.console.print(event, markup=False)
        seen = int(metrics.get("images_seen", 0))
        info = self.describe(metrics)
        if self.live:
            self.progress.update(self.task, description=phase, completed=seen, info=info)
            return
        line = f"{phase}: {info}" if info else phase
        now = time.monotonic()
        late = now - self.began >= LATER_S
        interval_s = PLAIN_INTERVAL_LATER_S if late else PLAIN_INTERVAL_S
        due = now - self.last_time >= interval_s
        if line != self.last_line and (due or seen >= self.total):
            self.console.print(line)
            self.last_line, self.last_time = line, now

    def describe(self, metrics: Mapping[str, float]) -> str:
        """'12,800/30,000 images  170/s  fake 0.43  gen -12.30  FD 9.81  1:41 left'."""
        if "images_seen" not in metrics:
            return ""
        seen, speed = int(metrics["images_seen"]), metrics.get("images_per_s", 0.0)
        parts = [f"{seen:,}/{self.total:,} images", f"{speed:.0f}/s"]
        for name, key in (("fake", "fake_loss"), ("gen", "generator_loss")):
            if key in metrics:
                parts.append(f"{name} {metrics[key]:.2f}")
        for key in metrics:
            if key.startswith(EVAL) and leads(key):  # one of several is enough here
                parts.append(f"{bare(key).partition('-')[0]} {metrics[key]:.2f}")
                break
        if metrics.get("skipped_updates"):
            parts.append(f"{metrics['skipped_updates']:.0f} updates skipped")
        if speed > 0 and seen < self.total:
            parts.append(f"{duration((self.total - seen) / speed)} left")
        return "  ".join(parts)
