"""What an interruption costs, and that the numbers do not notice: one table.

    python -m benchmarks.recovery [--only NAME ...] [--keep FOLDER]

Each row is a run of digits-sid on several Ray nodes on this machine, disturbed once, against an
undisturbed run on two workers: seconds from the last step before to the first step after by phase,
steps that had to be made again, and the largest relative difference of the final weights, second
moments and averaged weights (each as one vector; 0 is bit for bit). The row of one worker is what
another number of workers makes by itself: floats are added in another order, and 80 steps amplify
it.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.local_cluster import LocalCluster, Run
from sid_ray.actors.timeline import PHASES
from sid_ray.checkpoint.manifest import EMA_FOLDER, images_seen_of
from sid_ray.checkpoint.writer import RunStorage
from tests.support.checkpoints import newest_whole, read_manifest

IMAGES, EVERY = 5120, 640
FLAGS = [
    "--images", str(IMAGES), "--output.checkpoint-every", str(EVERY), "--output.report-every", "64",
    "--workers", "2", "--resources.resize-check-s", "1",
]  # fmt: skip


def state_of(run: Path, images: int = IMAGES) -> dict[str, torch.Tensor]:
    """Every kind of a run's final state as one vector, whoever wrote its parts."""
    folder, _ = newest_whole(run)
    assert folder is not None
    manifest, found = read_manifest(folder), {}
    assert manifest.images_seen == images, manifest.images_seen
    for role, table in manifest.fragments.items():
        files = {name: safe_open(folder / name, "pt") for name in table}
        rows = sorted((p, start, file) for file, of in table.items() for p, start, _ in of)
        for kind in manifest.kinds[role]:
            parts = [files[file].get_tensor(f"{p}/{kind}") for p, _, file in rows]
            found[f"{role} {kind}"] = torch.cat(parts)
    average = safe_open(folder / EMA_FOLDER / "model.safetensors", "pt")
    found["average"] = torch.cat([average.get_tensor(k).flatten() for k in average.keys()])  # noqa: SIM118
    return found


def difference(run: Path, other: Path, images: int = IMAGES) -> float:
    """The largest relative one of these vectors, at the end of runs of so many images."""
    ours, theirs = state_of(run, images), state_of(other, images)
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).norm() / theirs[k].norm()) for k in ours)


class Scenarios:
    """One method a disturbance; each gets a run that has two nodes and steps."""

    def __init__(self, cluster: LocalCluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        self.nodes = [cluster.add(), cluster.add()]

    def start(self, name: str, *flags: str) -> Run:
        run = Run(self.folder, name, FLAGS + list(flags), self.cluster.address)
        run.wait(lambda: run.said("first step of"))
        return run

    def past(self, run: Run, checkpoints: int) -> None:
        """Waits until so many checkpoints are in storage, and a few steps more were made."""
        run.wait(lambda: any(images_seen_of(n) >= checkpoints * EVERY for n in checkpoints_of(run)))
        time.sleep(1.5)

    def undisturbed(self) -> Run:
        return self.start("undisturbed")

    def one_worker_undisturbed(self) -> Run:
        """What another number of workers makes of the numbers, without any disturbance."""
        return self.start("one_worker_undisturbed", "--workers", "1")

    def add_a_node(self) -> Run:
        self.cluster.kill(self.nodes.pop())
        run = self.start("add_a_node")
        self.nodes.append(self.cluster.add())
        return run

    def drain_a_node(self) -> Run:
        run = self.start("drain_a_node")
        self.past(run, 1)
        node = self.nodes.pop()
        self.cluster.drain(node, 30)
        run.wait(lambda: run.said("no step lost"))
        self.cluster.kill(node)
        return run

    def kill_a_worker(self) -> Run:
        run = self.start("kill_a_worker")
        self.past(run, 1)
        self.cluster.processes(self.nodes[-1])[0].kill()
        return run

    def kill_a_node(self) -> Run:
        run = self.start("kill_a_node")
        self.past(run, 1)
        self.cluster.kill(self.nodes.pop())
        return run

    def kill_the_driver(self) -> Run:
        first = self.start("kill_the_driver")
        self.past(first, 1)
        first.kill()
        return self.start("kill_the_driver")

    def fill_the_disk(self) -> Run:
        """The nodes' disk for checkpoints is full for a while."""
        disk = self.folder / "small_disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
        try:
            run = self.start("fill_the_disk", "--output.local-folder", str(disk))
            self.past(run, 1)
            with (disk / "filler").open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(2**20))
            run.wait(lambda: run.said("was not written"))
            (disk / "filler").unlink()
            run.finish()
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        return run

    def truncate_a_file(self) -> Run:
        """The newest checkpoint is damaged everywhere while the workers are down."""
        first = self.start("truncate_a_file")
        self.past(first, 2)
        first.kill()
        time.sleep(2)
        newest = checkpoints_of(first)[0]
        path = first.folder / newest / "generator.rank0000.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        for node in self.nodes:
            shutil.rmtree(node.disk / "sid_ray", ignore_errors=True)
        run = self.start("truncate_a_file")
        assert run.said(f"damaged checkpoint skipped: {newest}"), run.output()
        return run

    def cut_storage(self) -> Run:
        """The run's folder is away for some checkpoints, and a worker dies meanwhile."""
        run = self.start("cut_storage")
        self.past(run, 1)
        away = run.folder.with_name("away")
        run.folder.rename(away)
        run.wait(lambda: run.said("storage cannot be written"))
        self.cluster.processes(self.nodes[-1])[0].kill()
        run.wait(lambda: run.said("storage cannot be read"))
        away.rename(run.folder)
        run.wait(lambda: run.said("storage is back") or run.said("steps lost"))
        return run


def checkpoints_of(run: Run) -> list[str]:
    """Whole checkpoints in the run's folder, newest first."""
    return RunStorage(run.folder).names()


def row(name: str, run: Run, reference: Path) -> str:
    summary = run.finish()
    stops: list[dict[str, Any]] = summary["interruptions"]
    started = run.said("first step of")
    cells = []
    if stops:
        stop = stops[0]
        phases = list(stop["phases"].values())
        cells = [f"{stop['steps_lost']}", f"{stop['seconds']:.1f}", *(f"{p:.1f}" for p in phases)]
    elif "driver" in name or "truncate" in name:
        numbers = started[-1].split("after ")[1].replace(" s (", ", ").rstrip(")").split(", ")
        cells = ["", *(number.split()[-1] for number in numbers)]
    cells += ["-"] * (2 + len(PHASES) - len(cells))
    found = difference(run.folder, reference)
    return f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {found:.1e} |"


def main() -> None:
    names = [name for name in vars(Scenarios) if not name.startswith("_")]
    names = [name for name in names if name not in ("start", "past", "undisturbed")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--keep", help="folder for the runs; a temporary one otherwise")
    options = parser.parse_args()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="recovery_")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with LocalCluster(folder) as cluster:
        scenarios = Scenarios(cluster, folder)
        if not (folder / "undisturbed" / "summary.json").exists():
            scenarios.undisturbed().finish()
        reference = folder / "undisturbed"
        print(f"| disturbed by | steps lost | seconds | {' | '.join(PHASES)} | difference |")
        print("|---|" + "---:|" * (3 + len(PHASES)), flush=True)
        for name in options.only:
            while len(scenarios.nodes) < 2:
                scenarios.nodes.append(cluster.add())
            method: Callable[[], Run] = getattr(scenarios, name)
            try:
                print(row(name, method(), reference), flush=True)
            except (RuntimeError, AssertionError) as error:
                print(f"| {name} | failed: {error} |", flush=True)


if __name__ == "__main__":
    main()
