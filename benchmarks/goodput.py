"""Useful work on nodes that come and go: sid_ray's elasticity against Ray Train's, one table.

    python -m benchmarks.goodput [--systems sid_ray ray ray-tuned] [--repeats 1] [--picture FILE]

The same run of digits-sid and the same bounded trace of losses and joins, counted from the first
step, on Ray nodes of one CPU each on this machine. "ray" is Ray Train's own elastic policy and its
default timeouts, "ray-tuned" its policy with sid_ray's timeouts; all three save checkpoints alike
(on local disk and in storage, at the same interval) and write one when a node is drained, which
Ray's default does not. Goodput is the undisturbed run's seconds (two workers throughout) over a
system's, first step to last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import LocalCluster, Run

FLAGS = [
    "--images", "20000", "--output.checkpoint-every", "2560", "--output.report-every", "128",
    "--workers", "2",
]  # fmt: skip
# Seconds from the first step. A drained node goes at its deadline.
TRACE = [(20, "drain"), (50, "join"), (85, "lose"), (115, "join")]
DEADLINE_S = 15
STOCK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "5",
}
SYSTEMS: dict[str, tuple[list[str], dict[str, str]]] = {
    "undisturbed": ([], {}),
    "sid_ray": ([], {}),
    "ray-tuned": (["--resources.scaling", "ray"], {}),
    "ray": (["--resources.scaling", "ray", "--resources.resize-check-s", "60"], STOCK),
}


def measure(folder: Path, system: str, name: str) -> dict[str, Any]:
    """One run of the trace on a cluster of its own; the run's summary with its seconds."""
    flags, environment = SYSTEMS[system]
    with LocalCluster(folder / f"{name}_nodes") as cluster:
        nodes, drained = [cluster.add(), cluster.add()], []
        run = Run(folder, name, FLAGS + flags, cluster.address, environment)
        run.wait(lambda: run.said("first step of"))
        began = time.monotonic()
        events = [] if system == "undisturbed" else sorted(
            [*TRACE, *((at + DEADLINE_S, "gone") for at, what in TRACE if what == "drain")]
        )  # fmt: skip
        for at, what in events:
            while time.monotonic() - began < at and run.process.poll() is None:
                time.sleep(0.05)
            if run.process.poll() is not None:
                break
            if what == "drain":
                drained.append(nodes.pop())
                cluster.drain(drained[-1], DEADLINE_S)
            elif what == "gone":
                cluster.kill(drained.pop())
            elif what == "lose":
                cluster.kill(nodes.pop())
            else:
                nodes.append(cluster.add())
        return run.finish(900) | {"progress": progress_of(run.folder)}


def progress_of(run: Path) -> list[tuple[float, int]]:
    """(seconds since the first report, images seen) of every report, in order of time."""
    lines = (run / "tracking.jsonl").read_text().splitlines()[1:]  # MLflow has each step once
    told = [values for _, kind, values in map(json.loads, lines) if kind == "metrics"]
    points = sorted(
        (values["stamp"] / 1000, values["step"])
        for values in told
        if "images_per_s" in values["metrics"]
    )
    return [(at - points[0][0], seen) for at, seen in points]


def draw(found: dict[str, list[dict[str, Any]]], picture: Path) -> None:
    """Images seen over time: flat where nobody steps, down where steps are made again."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5))
    for index, (system, runs) in enumerate(found.items()):
        times, images = zip(*runs[0]["progress"], strict=True)
        label = f"{system}: {runs[0]['train_seconds']:.0f} s"
        axes.plot(times, images, color=f"C{index}", label=label, linewidth=1.6)
    for at, what in TRACE:
        axes.axvline(at, color="grey", linewidth=0.7, linestyle=":")
        axes.text(at + 1, 200, what, color="grey", fontsize=8)
    axes.set(xlabel="seconds since the first step", ylabel="images seen")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def row(system: str, found: list[dict[str, Any]], undisturbed: float) -> str:
    seconds = statistics.median(item["train_seconds"] for item in found)
    first = min(found, key=lambda item: abs(item["train_seconds"] - seconds))
    stops = first["interruptions"]
    lost = ", ".join(f"{s['steps_lost']} ({s['seconds']:.0f} s)" for s in stops) or "-"
    total = sum(stop["steps_lost"] for stop in stops)
    away = sum(stop["seconds"] for stop in stops)
    goodput = f"{undisturbed / seconds:.2f}"
    cells = system, f"{seconds:.0f}", goodput, len(stops), total, f"{away:.0f}"
    return f"| {' | '.join(map(str, cells))} | {lost} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="goodput_"))
    systems = ["undisturbed", *(name for name in options.systems if name != "undisturbed")]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for repeat in range(options.repeats):  # in turn: a busy minute hits all alike
        for system in systems:
            found[system].append(measure(folder, system, f"{system}{repeat}"))
    print("| system | seconds | goodput | stops | steps again | seconds without steps | each |")
    print("|---|---:|---:|---:|---:|---:|---|")
    base = statistics.median(item["train_seconds"] for item in found["undisturbed"])
    for system in systems:
        print(row(system, found[system], base), flush=True)
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
