"""Seconds from the quickstart's command to its first step, by phase: one table.

    python -m benchmarks.startup [--starts 5] [--against FOLDER_OF_ANOTHER_CHECKOUT] [--imports]

Starts the command of `make quickstart` as a user would, with few images, several times; with
--against the two checkouts in turn, so that both meet the same machine. Medians. The phases before
Ray end with lines that the run prints; the others are those of its line "first step of ...". CPU
seconds are those of all processes of the run until then: on a shared machine they tell more than
seconds do. --imports prints instead what driver, worker and evaluator import, slowest first.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
FLAGS = ["--images", "512", "--evaluation.no-final-report"]
CHECKS, RAY_IMPORTS = "imports, arguments, teacher, data", "imports of Ray"
FIRST = re.compile(r"first step of \d+ workers? after ([\d.]+) s \((.*)\)")
TOTAL, CPU, END = "**command to first step**", "CPU seconds until then", "whole command"
LOOK_S = 0.1
TICK = os.sysconf("SC_CLK_TCK")
SLOW_S = 0.1


def phases_of(lines: Sequence[tuple[float, str]]) -> dict[str, float]:
    """Seconds by phase from (seconds since the command, line) of a run's output.

    They add up to TOTAL. Raises ValueError where a line is missing.
    """
    ends: dict[str, float] = {}
    for at, line in lines:
        if "full log:" in line:
            ends[CHECKS] = at
        if line.startswith("starting Ray"):
            ends[RAY_IMPORTS] = at
        if found := FIRST.search(line):
            seconds = dict(part.rsplit(" ", 1) for part in found[2].split(", "))
            before = {CHECKS: ends[CHECKS], RAY_IMPORTS: ends[RAY_IMPORTS] - ends[CHECKS]}
            phases = before | {name: float(value) for name, value in seconds.items()}
            return phases | {TOTAL: sum(phases.values())}
    raise ValueError("no first step: " + " | ".join(line for _, line in lines))


class Processes:
    """CPU seconds of a process and all that it starts, read from /proc for as long as they live."""

    def __init__(self, root: int):
        self.known, self.seconds = {root}, {}  # type: set[int], dict[int, float]

    def look(self) -> None:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                text = (folder / "stat").read_text()
            except OSError:  # it has ended
                continue
            fields = text[text.rindex(")") + 2 :].split()
            found[int(folder.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICK
        grows = True
        while grows:
            new = {pid for pid, (parent, _) in found.items() if parent in self.known} - self.known
            self.known |= new
            grows = bool(new)
        self.seconds |= {pid: found[pid][1] for pid in self.known & found.keys()}

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def start(checkout: Path, flags: Sequence[str]) -> dict[str, float]:
    """One run of the quickstart's command in a checkout."""
    command = [sys.executable, "-m", "sid_ray.cli", "distill", "digits-sid", "--run", "startup"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}
    lines: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run = subprocess.Popen(
            [*command, *flags, "--output.folder", folder],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert run.stdout is not None
        output, processes, stepped = run.stdout, Processes(run.pid), threading.Event()

        def read() -> None:
            for line in output:
                lines.append((time.monotonic() - began, line.strip()))
                if FIRST.search(line):
                    stepped.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while not stepped.wait(LOOK_S) and run.poll() is None:
            processes.look()
        run.wait()
        reader.join()
        return phases_of(lines) | {CPU: processes.total, END: time.monotonic() - began}


def table(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> list[str]:
    """Medians of ours by phase; of theirs and the ratio too, where there are any."""
    names = list(dict.fromkeys(name for row in (*theirs, *ours) for name in row))

    def median(rows: Sequence[Mapping[str, float]], name: str) -> float:
        return statistics.median(row.get(name, 0.0) for row in rows)

    if not theirs:
        lines = ["| phase | seconds |", "|---|---:|"]
        return lines + [f"| {name} | {median(ours, name):.1f} |" for name in names]
    lines = ["| phase | before, s | now, s | now / before |", "|---|---:|---:|---:|"]
    for name in names:
        before, now = median(theirs, name), median(ours, name)
        ratio = f"{now / before:.2f}" if before else ""
        lines.append(f"| {name} | {before:.1f} | {now:.1f} | {ratio} |")
    return lines


def slow_imports(modules: str) -> list[str]:
    """'seconds module' of what a process imports for these modules, the slowest first."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {modules}"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ, PYTHONPATH=str(HERE)),
    )
    found = []
    for line in done.stderr.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if len(parts) == 3 and parts[1].strip().isdigit():
            found.append((int(parts[1]) / 1e6, parts[2].strip()))
    whole = {name: seconds for seconds, name in found if "." not in name or "sid_ray" in name}
    slow = sorted(((s, name) for name, s in whole.items() if s >= SLOW_S), reverse=True)
    return [f"{seconds:6.2f} {name}" for seconds, name in slow]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout, started in turn with this")
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--workers", type=int, default=0, help="instead of the quickstart's")
    asked = parser.parse_args()
    if asked.imports:
        for modules in ("sid_ray.commands.distill, sid_ray.actors.trainer", "sid_ray.actors.worker",
                        "sid_ray.actors.evaluator", "sid_ray.actors.tracker"):  # fmt: skip
            print(f"{modules}:", *slow_imports(modules), sep="\n")
        return
    flags = FLAGS + (["--workers", str(asked.workers)] if asked.workers else [])
    ours, theirs = [], []  # type: list[dict[str, float]], list[dict[str, float]]
    for number in range(asked.starts):
        if asked.against:
            theirs.append(start(asked.against.resolve(), flags))
        ours.append(start(HERE, flags))
        rows = [f"{row[-1][TOTAL]:.1f} s" for row in (theirs, ours) if row]
        load = os.getloadavg()[0]
        print(f"start {number + 1}: {' and '.join(rows)}; load {load:.1f}", file=sys.stderr)
    print("\n".join(table(ours, theirs)))


if __name__ == "__main__":
    main()
