"""A run on clusters/local-elastic.yaml that grows and shrinks with its nodes, as a picture.

    python -m benchmarks.local_elastic [--picture docs/local-elastic.png]

The head has no CPU; the autoscaler starts up to two nodes of one CPU because the run asks for them.
One node is drained (clusters/drain.sh, as before a spot machine goes), later another is killed
without notice; each time the autoscaler brings a new one. Then the run is ended as by Ctrl-C.
Printed is what the run said.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import LocalAutoscaler, Run

FLAGS = [
    "--images", "1000000", "--output.checkpoint-every", "1280", "--output.report-every", "320",
    "--workers", "2", "--resources.resize-check-s", "20",
]  # fmt: skip
QUIET_S = 20.0  # steps between two events
DEADLINE_S = 60
PATIENCE_S = 400.0
GREW = "nodes have come; 2 workers after 1,"
STOP = re.compile(r"; (\d+) workers? after \d+, .*?([\d.]+) s \(")
FIRST = re.compile(r"first step of (\d+)")


class Count(threading.Thread):
    """How many nodes the autoscaler has at what time."""

    def __init__(self, cluster: LocalAutoscaler):
        super().__init__(daemon=True)
        self.cluster, self.ended = cluster, threading.Event()
        self.found: list[tuple[float, int]] = []

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self.found.append((time.time(), len(self.cluster.raylets())))


def disturb(cluster: LocalAutoscaler, run: Run) -> list[tuple[float, str]]:
    """Drains one node and kills another; what was done when, in seconds since the epoch."""
    events = []
    run.wait(lambda: run.said("2 workers after 1,") or run.said("first step of 2"), PATIENCE_S)
    grown = len(run.said(GREW))
    time.sleep(QUIET_S)
    events.append((time.time(), "one is drained"))
    draining = cluster.drain(cluster.raylets()[-1], DEADLINE_S)
    run.wait(lambda: run.said("a node is about to go; 1 worker after 2,"), PATIENCE_S)
    print(f"drain.sh ended with {draining.wait(DEADLINE_S)}, {time.time() - events[0][0]:.0f} s")
    run.wait(lambda: len(run.said(GREW)) > grown, PATIENCE_S)
    time.sleep(QUIET_S)
    shrunk = len(run.said("1 worker after 2,"))
    events.append((time.time(), "one is killed"))
    cluster.raylets()[-1].kill()
    run.wait(lambda: len(run.said("1 worker after 2,")) > shrunk, PATIENCE_S)
    run.wait(lambda: len(run.said(GREW)) > grown + 1, PATIENCE_S)
    time.sleep(QUIET_S)
    return events


def workers_of(run: Run, end: float) -> list[tuple[float, int]]:
    """(seconds since the epoch, workers that step) of the run's own timeline: none in a stop."""
    points = [(run.lines[0][0], 0)]
    for at, line in run.lines:
        if found := FIRST.search(line):
            points.append((at, int(found[1])))
        elif found := STOP.search(line):
            stopped = max(points[-1][0], at - float(found[2]))  # clocks of two processes
            points += [(stopped, 0), (at, int(found[1]))]
    return [*points, (end, points[-1][1])]


def speed_of(folder: Path, end: float) -> list[tuple[float, float]]:
    """(seconds since the epoch, images a second) of each progress report."""
    lines = (folder / "tracking.jsonl").read_text().splitlines()[1:]
    told = [values for _, kind, values in map(json.loads, lines) if kind == "metrics"]
    found = [(v["stamp"] / 1000, v["metrics"]) for v in told if "images_per_s" in v["metrics"]]
    return sorted((at, metrics["images_per_s"]) for at, metrics in found if at <= end)


def draw(measured: dict[str, Any], picture: Path) -> None:
    """Nodes of the cluster, workers that step and images a second over time."""
    import matplotlib.pyplot as plt

    began = measured["workers"][0][0]
    figure, (nodes, workers, speed) = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
    for axes, name, colour in ((nodes, "nodes", "C2"), (workers, "workers", "C0")):
        points = [(max(at - began, 0), value) for at, value in measured[name]]
        times, values = zip(*points, strict=True)
        axes.step(times, values, where="post", color=colour)
        axes.fill_between(times, values, step="post", color=colour, alpha=0.2)
        axes.set(ylim=(0, 3.6), yticks=[0, 1, 2, 3])  # 3: the new one beside a drained one
    times, values = zip(*measured["speed"], strict=True)
    speed.plot([at - began for at in times], values, ".", color="C1")
    speed.set(xlabel="seconds since the command", ylabel="images/s", ylim=(0, 1.1 * max(values)))
    nodes.set(ylabel="nodes of the\nautoscaler", title="clusters/local-elastic.yaml, digits-sid")
    workers.set(ylabel="workers\nthat step")
    for axes in (nodes, workers, speed):
        axes.grid(alpha=0.3)
        for at, _ in measured["events"]:
            axes.axvline(at - began, color="black", linewidth=0.8, linestyle=":")
    for at, what in measured["events"]:
        nodes.text(at - began + 2, 3.15, what, fontsize=9)
    figure.align_ylabels()
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="local_elastic_"))
    with LocalAutoscaler(folder) as cluster:
        count = Count(cluster)
        count.start()
        run = Run(folder, "elastic", FLAGS, cluster.address)
        events = disturb(cluster, run)
        end = time.time()
        count.ended.set()
        count.join()
        run.process.send_signal(signal.SIGINT)
        run.process.wait(PATIENCE_S)
    for line in run.said(" after "):
        print(line)
    measured = {
        "nodes": count.found,
        "workers": workers_of(run, end),
        "speed": speed_of(run.folder, end),
        "events": events,
    }
    (folder / "measured.json").write_text(json.dumps(measured))
    print(f"measured: {folder / 'measured.json'}")
    if options.picture:
        draw(measured, options.picture)


if __name__ == "__main__":
    main()
