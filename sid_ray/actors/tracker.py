"""The board that the progress display reads, and the one writer to MLflow.

Workers and the evaluator send it numbers and go on at once; ``sender.py`` keeps these on the
driver's disk and writes them in order. It lives as long as the driver, so restarts of the workers
end up in the same MLflow run.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from sid_ray.actors.passes import Passes
from sid_ray.actors.timeline import Interruption, Timeline
from sid_ray.evaluation.records import add_result
from sid_ray.run_folder import EVALUATIONS, PICTURES
from sid_ray.storage.durable import replace_file
from sid_ray.storage.store import Store
from sid_ray.tracking.mlflow_run import Target
from sid_ray.tracking.sender import TIMEOUT_S, Tracking

SAME_S = 30.0  # a line is not said again so soon
SECONDS = re.compile(r"\b\d+(\.\d+)? m?s\b")  # in which lines of several ranks may differ


@dataclass
class Board:
    """What a display shows: the run's phase, the newest numbers, events not yet shown."""

    phase: str = "starting"
    metrics: dict[str, float] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    run_id: str | None = None
    trouble: str = ""
    gave_up: str = ""  # why the workers stopped before the end, for good
    refused: str = ""  # what the user has to mend before workers can work
    interruptions: list[Interruption] = field(default_factory=list)


@ray.remote(num_cpus=0, max_concurrency=4)
class Tracker:
    """Keeps the board and writes to MLflow, both without making its callers wait.

    What a call told is on the driver's disk before it returns: a killed driver loses none of it.
    """

    def __init__(
        self,
        target: Target,
        folder: str,
        batch_size: int = 1,
        began: float = 0.0,
        hold_s: float = 0.0,
        rest_s: float = 0.0,
    ):
        self._board = Board()
        self._timeline = Timeline(batch_size, began, time.time())
        self._pause, self._stored = "", -1
        self._evaluators_node, self._failed = "", ""
        self._passes = Passes()
        self._said: dict[str, float] = {}
        self._proven: set[str] = set()
        self._lock = threading.Lock()
        self._folder = Path(folder)
        self._tracking = Tracking(target, self._folder, self.event, None, hold_s, rest_s)
        self._tracking.status("RUNNING")

    def log(self, metrics: Mapping[str, float], images_seen: int) -> None:
        """Metrics of the training at images_seen: on the board and kept now, in MLflow soon."""
        with self._lock:
            self._board.metrics.update(metrics, images_seen=images_seen)
        self._tracking.metrics(metrics, images_seen)

    def log_score(self, scores: Mapping[str, float], images_seen: int) -> frozenset[str]:
        """Scores of the weights at images_seen, by name: eval/NAME, and the best as best/NAME.

        Returns the names of those scores whose best value over all starts of the run is this one,
        also where a resumed run tells it again.
        """
        told, new = self._tracking.scores(scores, images_seen)
        with self._lock:
            self._board.metrics.update(told)
        return new

    def log_evaluation(self, result: Mapping[str, Any]) -> None:
        """Scores and all that they mean, as a line of the run's evaluations.jsonl.

        What a resumed run scores again is no second line.
        """
        try:
            add_result(Store.at(self._folder), result)
        except OSError as error:
            self.event(f"warning: {self._folder / EVALUATIONS} cannot be kept ({error})")

    def log_picture(self, name: str, png: bytes, images_seen: int) -> None:
        """A PNG as MLflow's image ``name`` at images_seen; kept in the run's folder here."""
        file = self._folder / PICTURES / f"{name.replace('/', '~')}-{images_seen:012d}.png"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, png, sync=False)
        except OSError as error:
            self.event(f"warning: {file} cannot be written ({error.strerror or error})")
            return
        self._tracking.image(name, file, images_seen)

    def log_image(self, name: str, file: str, images_seen: int) -> None:
        """An image file, on the driver's disk for as long as the run works, as MLflow's image."""
        self._tracking.image(name, Path(file), images_seen)

    def log_file(self, file: str, folder: str = "") -> None:
        """A file, on the driver's disk for as long as the run works, as MLflow's artifact."""
        self._tracking.file(Path(file), folder)

    def set_phase(self, phase: str) -> None:
        with self._lock:
            self._board.phase = phase

    def give_up(self, reason: str) -> None:
        """The workers stop and nothing is to be tried again: the same would happen."""
        with self._lock:
            self._board.gave_up = reason

    def refuse(self, reason: str) -> None:
        """The workers did not begin, and will not until the user has mended this."""
        with self._lock:
            self._board.refused = reason

    def proven(self) -> set[str]:
        """Nodes that have proven to this driver that they share the run: proof.py."""
        with self._lock:
            return set(self._proven)

    def prove(self, nodes: Iterable[str]) -> None:
        with self._lock:
            self._proven.update(nodes)

    def evaluator_sits(self, node: str) -> None:
        """Ray's id of the node on which the evaluator has its resources."""
        with self._lock:
            self._evaluators_node = node

    def evaluators_node(self) -> str:
        """Where the evaluator was last heard of; empty for nowhere yet."""
        with self._lock:
            return self._evaluators_node

    def beat(self, images_seen: int, at: float) -> str:
        """Rank 0's newest step (0 for none yet). Returns why to pause, empty for going on."""
        if images_seen:
            self._tracking.wake()
        with self._lock:
            ended = self._timeline.stepped(images_seen, at) if images_seen else None
            if ended:
                self._board.interruptions = list(self._timeline.interruptions)
                self._board.events.append(str(ended))
            return self._pause

    def ask_pause(self, reason: str) -> None:
        """Asks the workers to save and stop."""
        with self._lock:
            self._pause = reason

    def group_starts(self, workers: int) -> None:
        """A new group of workers is there: what was asked of an earlier one is done."""
        with self._lock:
            self._pause, self._failed = "", ""
            self._timeline.group_is(workers, time.time())
            self._timeline.mark("start processes", time.time())

    def mark(self, phase: str, at: float) -> None:
        """A phase of a start has ended."""
        with self._lock:
            self._timeline.mark(phase, at)

    def failed(self, reason: str) -> None:
        """A rank has failed by itself; what its peers make of that is no reason any more."""
        with self._lock:
            self._failed = self._failed or reason

    def micro_batch(self) -> int:
        """The micro-batch of this run's workers from now on; 0 for the config's."""
        with self._lock:
            return self._passes.now

    def smaller_passes(self, tried: int, smaller: int) -> int:
        """A rank ran out of memory at a micro-batch. Returns the one to start again with, 0 for
        none.
        """
        with self._lock:
            return self._passes.after(tried, smaller)

    def stopped(self, reason: str, planned: bool, at: float) -> int:
        """The group has stopped. Returns images_seen of the newest checkpoint in storage."""
        with self._lock:
            self._timeline.stopped(reason if planned else self._failed or reason, planned, at)
            self._board.phase = "restarting"
            return self._stored

    def stored(self, images_seen: int) -> None:
        """A checkpoint is whole in storage."""
        with self._lock:
            self._stored = max(self._stored, images_seen)

    def event(self, text: str) -> None:
        """A line that the display prints once, above the progress; ranks may say the same."""
        with self._lock:
            now, key = time.monotonic(), SECONDS.sub("", text)
            if now - self._said.get(key, -SAME_S) >= SAME_S:
                self._board.events.append(text)
            self._said[key] = now

    def board(self, left_s: float | None = None) -> Board:
        """The board; its events are handed out once.

        ``left_s``: for how long MLflow may be told from now on, by the driver's lease.
        """
        if left_s is not None:
            self._tracking.allow(left_s)
        with self._lock:
            events, self._board.events = self._board.events, []
            return Board(
                self._board.phase,
                {**self._tracking.best, **self._board.metrics},
                events,
                self._tracking.run_id or None,
                self._tracking.trouble,
                self._board.gave_up,
                self._board.refused,
                list(self._board.interruptions),
            )

    def finish(self, status: str, timeout_s: float = TIMEOUT_S) -> str:
        """Ends the MLflow run when all is sent, for a limited time; '' or what is left, and why."""
        self._tracking.status(status)
        return self._tracking.finish(timeout_s, close=status == "FINISHED")
