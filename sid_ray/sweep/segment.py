"""A trial from one decision to the next: its run is taken up, trained to there, and its score read.

Nothing here knows of Tune: what Tune asks for is in trainable.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sid_ray.checkpoint.find import newest_listed
from sid_ray.checkpoint.manifest import EMA_FOLDER
from sid_ray.commands.distill import GAVE_UP, LOST, STOPPED
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.evaluation.records import results_in
from sid_ray.run_folder import EVALUATIONS, WAITING, RunFolder
from sid_ray.storage.errors import retrying
from sid_ray.storage.text_lines import lines_in
from sid_ray.weights.description import WEIGHTS

TRIES = 3  # of a segment in a row without a new checkpoint between
REFUSED = 2  # exit code of wrong input: trying again is of no use
BUSY, BUSY_S, AGAIN_S = "already being worked on", 90.0, 2.0  # by a process that is about to end
END_S = 60.0  # for a process that was asked to end
PIDS = "processes"  # in the sweep's folder: a file a running process, its name the run's
ACTORS_OWN = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")  # Ray sets them for an actor without CPUs


class TrialFailedError(RuntimeError):
    """A segment that cannot be ended, with the last line that its process said."""


class TrialDivergedError(TrialFailedError):
    """A run that gave up, and would again: a run is a function of its config."""


class TrialStoppedError(RuntimeError):
    """Its process was asked to end, and did."""


@dataclass
class Trial:
    """One trial's run.

    Args:
        config: of the whole run; output.folder is absolute.
        folder: of the sweep, on this machine: configs and outputs of processes.
        address: of the Ray cluster.
        environment: values of ACTORS_OWN as the user has them.
        began_from: another run's checkpoint, which the run begins from; its address.
        began_at: images seen of that checkpoint.
    """

    config: DistillConfig
    folder: Path
    address: str
    environment: Mapping[str, str] = field(default_factory=dict)
    began_from: str = ""
    began_at: int = 0
    process: subprocess.Popen | None = None

    @property
    def name(self) -> str:
        return self.config.run_name

    @property
    def images_seen(self) -> int:
        """Of the newest checkpoint."""
        there = newest_listed(RunFolder.of(self.config).store)
        return there[1].images_seen if there else self.began_at

    def advance(self, images: int, workers: int) -> int:
        """Trains up to ``images`` on as many workers; returns what was seen then.

        A process that dies is started again and goes on from its checkpoint. Raises
        TrialFailedError when several in a row came no further, TrialDivergedError where the run
        gave up, TrialStoppedError.
        """
        failures, before = 0, self.images_seen
        while (seen := self.images_seen) < images:
            failures, before = (0, seen) if seen > before else (failures, before)
            if failures == TRIES:
                raise TrialFailedError(f"{self.name}: {self.last_line()}")
            self.run_once(images, workers)
            failures += 1
        return seen

    def run_once(self, images: int, workers: int) -> None:
        """One process, after another one of this run that may still be ending."""
        code, until = self.run_process(images, workers), time.monotonic() + BUSY_S
        while code == REFUSED and BUSY in self.last_line() and time.monotonic() < until:
            time.sleep(AGAIN_S)
            code = self.run_process(images, workers)
        if code == STOPPED:
            raise TrialStoppedError(self.name)
        if code == LOST:  # its storage is away: until it is back, trying again is of no use
            retrying(lambda: newest_listed(RunFolder.of(self.config).store))
        if code == GAVE_UP:
            raise TrialDivergedError(f"{self.name}: {self.reason()}")
        if code == REFUSED:
            raise TrialFailedError(f"{self.name}: {self.last_line()}")

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
                [sys.executable, "-m", "sid_ray.sweep.trial", str(path), self.began_from],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**kept, **self.environment, "RAY_ADDRESS": self.address},
                start_new_session=True,  # Ctrl-C is the sweep's; it ends its trials in order
            )
        note = self.folder / PIDS / self.name
        note.parent.mkdir(exist_ok=True)
        note.write_text(str(self.process.pid))
        try:
            return self.process.wait()
        finally:
            note.unlink(missing_ok=True)
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
        lines = [line.strip() for line in lines_in(text) if line.strip()]
        return lines[-1][:500] if lines else "its process said nothing"

    def reason(self) -> str:
        """The line with which the newest process said that it failed; else its last."""
        try:
            lines = lines_in(self.output.read_text(errors="replace"))
        except OSError:
            lines = []
        told = [line.strip() for line in lines if line.startswith("failed: ")]
        return told[-1].removeprefix("failed: ")[:500] if told else self.last_line()

    def scores(self, images_seen: int, names: Sequence[str], workers: int) -> dict[str, float]:
        """Scores of the weights at images_seen.

        Where one is missing, because a driver was killed between the last checkpoint and its
        score, or because the evaluation failed: what waits is scored by the run started again, else
        the checkpoint is scored here. Raises what that raises: a trial is not worse for it.
        """
        run = RunFolder.of(self.config)

        def there() -> dict[str, float]:
            return scores_in(
                run.local / EVALUATIONS,
                images_seen,
                self.config.evaluation.num_images,
                self.weights_sha256(),
            )

        found = there()
        if not found.keys() >= set(names) and any((run.local / WAITING).glob("*")):
            self.run_once(images_seen, workers)
            found = there()
        if not found.keys() >= set(names):
            from sid_ray.sweep.scoring import score_newest

            found = score_newest(self.config)
        missing = [name for name in names if name not in found]
        if missing:
            raise TrialFailedError(f"{self.name}: no score {missing[0]}, there are {sorted(found)}")
        return {name: found[name] for name in names}

    def weights_sha256(self) -> str:
        """Of the averaged generator in the newest checkpoint; empty where there is none."""
        there = newest_listed(RunFolder.of(self.config).store)
        return there[1].files.get(f"{EMA_FOLDER}/{WEIGHTS}", "") if there else ""


def scores_in(
    evaluations: Path, images_seen: int, num_images: int, weights_sha256: str = ""
) -> dict[str, float]:
    """Scores that a run's evaluations.jsonl holds of the weights at images_seen; the last wins.

    Those of other weights, or of another number of made images, are not theirs.
    """
    found: dict[str, float] = {}
    try:
        results = results_in(evaluations.read_bytes())
    except FileNotFoundError:
        return found
    for told in results:
        try:
            same = (told["images_seen"], told["num_images"]) == (images_seen, num_images)
            if same and (not weights_sha256 or told["weights_sha256"] == weights_sha256):
                found |= told["scores"]
        except (ValueError, TypeError, KeyError):
            continue
    return found
