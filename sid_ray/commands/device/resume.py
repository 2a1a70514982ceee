"""A real run that is killed and goes on, against one that was not: the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from sid_ray.checkpoint.find import manifest_of, newest_whole
from sid_ray.checkpoint.manifest import Manifest
from sid_ray.commands.benching.processes import search_path
from sid_ray.commands.device.apart import last_words
from sid_ray.commands.device.rows import FAILED, OK, WARNING, DeviceRow, Rig
from sid_ray.commands.device.short_run import reads_text, shipped_recipes
from sid_ray.errors import UserError
from sid_ray.storage.store import Store

IMAGES, EVERY = 9_600, 1_600  # of a run, and between two checkpoints; on a CPU a tenth
SMALLER = 10
LOOK_S, GONE_S = 0.05, 20.0
NOT_OURS = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")


def verify_resume(rig: Rig) -> Iterator[DeviceRow]:
    """A run that is killed behind its first checkpoint and resumed, then one that is not.

    One after the other: Ray starts on a busy machine, too.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        whole = Run("whole", runs, rig)
        cut = Run("cut", runs, rig)
        try:
            began = time.monotonic()
            cut.start()
            cut.wait_for(lambda: cut.newest() is not None or cut.ended, rig, "its first checkpoint")
            killed_at = cut.kill()
            yield killed_row(killed_at, cut, time.monotonic() - began)
            again = time.monotonic()
            cut.start()
            cut.wait_for(lambda: cut.ended, rig, "its end")
            seconds = time.monotonic() - again
            whole.start()
            whole.wait_for(lambda: whole.ended, rig, "its end")
            yield from compared(whole, cut, seconds)
        finally:
            whole.stop()
            cut.stop()


class Run:
    """A run of the command, in a process of its own."""

    def __init__(self, name: str, folder: Path, rig: Rig):
        self.name, self.folder = name, folder
        self.store, self.log = Store.at(folder / name), folder / f"{name}.log"
        self.command = resumed_command(name, folder, rig)
        self.images = IMAGES // SMALLER if rig.small else IMAGES
        self.process: subprocess.Popen | None = None
        self.children: list[psutil.Process] = []

    def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in NOT_OURS}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=kept | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": search_path()},
                cwd=self.folder,
            )

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def newest(self) -> Manifest | None:
        """Of its newest whole checkpoint."""
        if not (self.folder / self.name).is_dir():
            return None
        name, _ = newest_whole(self.store)
        return manifest_of(self.store, name) if name else None

    def wait_for(self, there: Callable[[], bool], rig: Rig, what: str) -> None:
        """Raises UserError where it does not come in time, or the run failed."""
        while not there():
            if rig.left_s < GONE_S:
                raise UserError(
                    f"run {self.name}: {what} did not come in time{last_words(self.log)}"
                )
            time.sleep(LOOK_S)
        if self.process is not None and self.process.poll():
            raise UserError(
                f"run {self.name} ended with code {self.process.returncode}{last_words(self.log)}"
            )

    def kill(self) -> int:
        """Kills the driver with signal 9; images seen at its newest checkpoint, 0 for none.

        Its workers end by themselves: that is waited for, and helped with where it takes long.
        """
        assert self.process is not None
        self.children = children_of(self.process.pid)
        self.process.kill()
        self.process.wait()
        found = self.newest()
        _, alive = psutil.wait_procs(self.children, timeout=GONE_S)
        for child in alive:
            child.kill()
        return found.images_seen if found else 0

    def stop(self) -> None:
        """Nothing of it is left."""
        if self.process is None:
            return
        children = children_of(self.process.pid) if not self.ended else []
        if not self.ended:
            self.process.kill()
        for child in (*children, *self.children):
            if child.is_running():
                child.kill()
        self.process.wait()


def children_of(number: int) -> list[psutil.Process]:
    try:
        return psutil.Process(number).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def resumed_command(name: str, folder: Path, rig: Rig) -> list[str]:
    """One worker on one GPU, in the deterministic mode, without scores."""
    recipe = next(name for name in shipped_recipes().values() if not reads_text(name))
    smaller = SMALLER if rig.small else 1
    device = ["--resources.use-gpu"] if not rig.small else ["--resources.no-use-gpu"]
    return [
        sys.executable, "-P", "-m", "sid_ray.cli", "distill", recipe, "--run", name,
        "--output.folder", str(folder), "--output.local-folder", str(folder / "local"),
        "--images", str(IMAGES // smaller), "--output.checkpoint-every", str(EVERY // smaller),
        "--output.report-every", str(EVERY // smaller), "--output.keep-checkpoints", "20",
        "--evaluation.every", "0", "--evaluation.no-final-report", "--resources.num-workers", "1",
        "--resources.min-workers", "1", "--resources.deterministic",
        "--resources.attention", "sdpa", "--resources.compile", "off", *device,
    ]  # fmt: skip


def killed_row(images: int, run: Run, seconds: float) -> DeviceRow:
    late = images >= run.images or not images
    return DeviceRow(
        "kill -9 of a run behind its first checkpoint",
        f"killed {seconds:.0f} s after its start; its newest checkpoint is of {images:,} images",
        "before its end",
        WARNING if late else OK,
        {"images_seen": images, "seconds": seconds},
    )


def compared(whole: Run, cut: Run, seconds: float) -> Iterator[DeviceRow]:
    """Checksums of all files of the two last checkpoints: weights, moments and average."""
    mine, theirs = cut.newest(), whole.newest()
    if mine is None or theirs is None or mine.images_seen != theirs.images_seen:
        seen = [found.images_seen if found else 0 for found in (mine, theirs)]
        yield DeviceRow(
            "resumed against undisturbed",
            f"the last checkpoints are of {seen[0]:,} and {seen[1]:,} images",
            "the same",
            FAILED,
        )
        return
    differing = sorted(
        name for name, digest in theirs.files.items() if mine.files.get(name) != digest
    )
    yield DeviceRow(
        f"resumed against undisturbed, {theirs.images_seen:,} images",
        f"{len(differing)} of {len(theirs.files)} files differ"
        + (f": {', '.join(differing)}" if differing else "")
        + f"; going on took {seconds:.0f} s",
        "none",
        FAILED if differing else OK,
        {"differing": len(differing), "files": len(theirs.files), "seconds": seconds},
    )
