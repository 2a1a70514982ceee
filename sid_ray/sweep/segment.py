"""A trial from one decision to the next: its run is taken up, trained to there, and its score read.

Nothing here knows of Tune: what Tune asks for is in trainable.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sid_ray.config import DistillConfig, replace
from sid_ray.journal import JOURNAL
from sid_ray.metrics.names import EVAL
from sid_ray.run_folder import RunFolder
from sid_ray.stored import newest_listed

TRIES = 3  # of a segment in a row without a new checkpoint between
REFUSED = 2  # exit code of wrong input: trying again is of no use
END_S = 60.0  # for a process that was asked to end
ACTORS_OWN = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # Ray sets them for an actor without CPUs


class TrialFailedError(RuntimeError):
    """A segment that cannot be ended, with the last line that its process said."""


@dataclass
class Trial:
    """One trial's run.

    Args:
        config: of the whole run; output.folder is absolute.
        folder: of the sweep, on this machine: configs and outputs of processes.
        address: of the Ray cluster.
        environment: values of ACTORS_OWN as the user has them.
    """

    config: DistillConfig
    folder: Path
    address: str
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        return self.config.run_name

    @property
    def images_seen(self) -> int:
        """Of the newest checkpoint."""
        there = newest_listed(RunFolder.of(self.config).store)
        return there[1].images_seen if there else 0

    def advance(self, images: int, workers: int) -> int:
        """Trains up to ``images`` on as many workers; returns what was seen then.

        A process that dies is started again and goes on from its checkpoint. Raises
        TrialFailedError when several in a row came no further.
        """
        failures, before = 0, self.images_seen
        while (seen := self.images_seen) < images:
            failures, before = (0, seen) if seen > before else (failures, before)
            if failures == TRIES:
                raise TrialFailedError(f"{self.name}: {self.last_line()}")
            code = self.run_process(images, workers)
            failures += 1
            if code == REFUSED:
                raise TrialFailedError(f"{self.name}: {self.last_line()}")
        return seen

    def run_process(self, images: int, workers: int) -> int:
        """One process, to its end. Returns its exit code."""
        config = replace(
            self.config,
            training__images=images,
            resources__num_workers=workers,
            resources__min_workers=1,
            evaluation__final_report=False,
        )
        path = self.folder / f"{self.name}.json"
        path.write_text(config.to_json())
        kept = {name: value for name, value in os.environ.items() if name not in ACTORS_OWN}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sid_ray.sweep.trial", str(path)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**kept, **self.environment, "RAY_ADDRESS": self.address},
                start_new_session=True,  # Ctrl-C is the sweep's; it ends its trials in order
            )
        try:
            return self.process.wait()
        finally:
            self.end()

    def end(self) -> None:
        """Ends a process that still runs, as Ctrl-C would, later for good."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.stdin:
            process.stdin.close()  # all it takes: trial.py. A signal more would cut its end short
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def output(self) -> Path:
        return self.folder / f"{self.name}.log"

    def last_line(self) -> str:
        """The last line that the trial's processes printed."""
        try:
            text = self.output.read_text(errors="replace")
        except OSError:
            return "its process said nothing"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:500] if lines else "its process said nothing"

    def scores(self, images_seen: int) -> dict[str, float]:
        """Scores of the weights at images_seen, out of the run's journal; empty for none."""
        return scores_in(RunFolder.of(self.config).local / JOURNAL, images_seen)


def scores_in(journal: Path, images_seen: int) -> dict[str, float]:
    """Scores that a journal holds of one number of images; of repeated ones the last."""
    found: dict[str, float] = {}
    try:
        lines = journal.read_bytes().split(b"\n")
    except FileNotFoundError:
        return found
    for line in lines[:-1]:  # behind the last newline a record may be half written
        try:
            _, kind, values = json.loads(line)
        except (ValueError, TypeError):
            continue
        if kind == "metrics" and values.get("step") == images_seen:
            told = values["metrics"].items()
            found |= {name.removeprefix(EVAL): v for name, v in told if name.startswith(EVAL)}
    return found
