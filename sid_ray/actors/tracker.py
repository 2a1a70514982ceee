"""The one writer to MLflow, and the board that the progress display reads.

Workers and the evaluator send it numbers and go on at once; a thread of its own writes them in
order. It lives as long as the driver, so restarts of the workers end up in the same MLflow run.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from sid_ray.actors.timeline import Interruption, Timeline

SAME_S = 30.0  # a line is not said again so soon
SECONDS = re.compile(r"\b\d+(\.\d+)? m?s\b")  # in which lines of several ranks may differ
LATER = 2.0  # seconds between two tries of a store that fails
REPORT_TIMEOUT_S = 60.0
PARAM_LIMIT = 6000  # characters MLflow keeps of a param value


@dataclass
class Board:
    """What a display shows: the run's phase, the newest numbers, events not yet shown."""

    phase: str = "starting"
    metrics: dict[str, float] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    run_id: str | None = None
    trouble: str = ""
    gave_up: str = ""  # why the workers stopped before the end, for good
    interruptions: list[Interruption] = field(default_factory=list)


@ray.remote(num_cpus=0, max_concurrency=4)
class Tracker:
    """Keeps the board and writes to MLflow, both without making its callers wait."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        artifacts: str,
        run_id: str | None,
        batch_size: int = 1,
        began: float = 0.0,
    ):
        self._board = Board()
        self._timeline = Timeline(batch_size, began, time.time())
        self._pause, self._stored = "", -1
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()
        self._jobs: queue.Queue[tuple[str, tuple] | None] = queue.Queue()
        self._start = (uri, experiment, run_name, dict(params), dict(tags), artifacts, run_id)
        self._logged_until: dict[str, int] = {}
        self._failure: BaseException | None = None
        self._writer = threading.Thread(target=self._write_all, daemon=True)
        self._writer.start()

    def log(self, metrics: Mapping[str, float], images_seen: int) -> None:
        """Metrics of the training at images_seen: on the board now, in MLflow soon."""
        with self._lock:
            self._board.metrics.update(metrics, images_seen=images_seen)
        self._jobs.put(("metrics", (dict(metrics), images_seen, int(time.time() * 1000))))

    def log_score(self, scores: Mapping[str, float], images_seen: int) -> None:
        """Scores of the weights at images_seen; the best of each is logged as best_NAME too."""
        with self._lock:
            board = self._board.metrics
            best = {
                f"best_{name}": min(value, board.get(f"best_{name}", value))
                for name, value in scores.items()
            }
            board.update(scores)
            board.update(best)
        stamp = int(time.time() * 1000)
        self._jobs.put(("metrics", ({**scores, **best}, images_seen, stamp)))

    def set_phase(self, phase: str) -> None:
        with self._lock:
            self._board.phase = phase

    def give_up(self, reason: str) -> None:
        """The workers stop and nothing is to be tried again: the same would happen."""
        with self._lock:
            self._board.gave_up = reason

    def beat(self, images_seen: int, at: float) -> str:
        """Rank 0's newest step (0 for none yet). Returns why to pause, empty for going on."""
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
            self._pause = ""
            self._timeline.group_is(workers, time.time())
            self._timeline.mark("start processes", time.time())

    def mark(self, phase: str, at: float) -> None:
        """A phase of a start has ended."""
        with self._lock:
            self._timeline.mark(phase, at)

    def stopped(self, reason: str, planned: bool, at: float) -> int:
        """The group has stopped. Returns images_seen of the newest checkpoint in storage."""
        with self._lock:
            self._timeline.stopped(reason, planned, at)
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

    def board(self) -> Board:
        """The board; its events are handed out once."""
        with self._lock:
            events, self._board.events = self._board.events, []
            return Board(
                self._board.phase,
                dict(self._board.metrics),
                events,
                self._board.run_id,
                self._board.trouble,
                self._board.gave_up,
                list(self._board.interruptions),
            )

    def finish(self, status: str, timeout_s: float = 60.0) -> str:
        """Writes what is left and ends the MLflow run; '' or what could not be written, and why."""
        self._jobs.put(("status", (status,)))
        self._jobs.put(None)
        self._writer.join(timeout_s)
        if self._writer.is_alive():
            left = self._jobs.qsize()
            return (
                f"{left} records were not written within {timeout_s:.0f} s: {self._board.trouble}"
            )
        return f"MLflow: {self._failure}" if self._failure else ""

    def _write_all(self) -> None:
        try:
            client, run_id = self._open()
            with self._lock:
                self._board.run_id = run_id
            while (job := self._jobs.get()) is not None:
                self._write(client, run_id, *job)
        except BaseException as error:  # a thread's error would be lost: finish() reports it
            self._failure = error
            with self._lock:
                self._board.trouble = f"{type(error).__name__}: {error}"

    def _open(self) -> tuple[Any, str]:
        """Opens the store and the run: a new one, or the one that the run had before."""
        import mlflow
        from mlflow.entities import Param, RunTag
        from mlflow.exceptions import MlflowException

        uri, experiment, run_name, params, tags, artifacts, run_id = self._start
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient(uri)
        if run_id is not None:
            try:
                self._go_on(client, run_id)
                return client, run_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                self.event(f"MLflow run {run_id} is not in {shown_uri(uri)}: a new one is begun")
        found = client.get_experiment_by_name(experiment)
        location = None if uri.startswith("http") else artifacts
        experiment_id = (
            found.experiment_id
            if found
            else client.create_experiment(experiment, artifact_location=location)
        )
        run = client.create_run(experiment_id, run_name=run_name)
        logged = [Param(name, str(value)[:PARAM_LIMIT]) for name, value in params.items()]
        run_tags = [RunTag(name, value) for name, value in tags.items()]
        client.log_batch(run.info.run_id, params=logged, tags=run_tags)
        return client, run.info.run_id

    def _go_on(self, client: Any, run_id: str) -> None:
        """Takes up an earlier run: what is there already is not written again.

        Draws are keyed by images seen, so a resumed run repeats the same numbers between its
        checkpoint and the moment it was cut.
        """
        client.update_run(run_id, status="RUNNING")
        metrics = client.get_run(run_id).data.metrics
        for name in metrics:
            history = client.get_metric_history(run_id, name)
            self._logged_until[name] = max(point.step for point in history)
        with self._lock:
            best = {name: value for name, value in metrics.items() if name.startswith("best_")}
            self._board.metrics.update(best)

    def _write(self, client: Any, run_id: str, kind: str, values: tuple) -> None:
        if kind == "metrics":
            from mlflow.entities import Metric

            metrics, images_seen, stamp = values
            batch = [
                Metric(name, float(value), stamp, images_seen)
                for name, value in metrics.items()
                if images_seen > self._logged_until.get(name, -1)
            ]
            if batch:
                client.log_batch(run_id, metrics=batch)
        elif kind == "status":
            client.set_terminated(run_id, status=values[0])


def shown_uri(uri: str) -> str:
    """An address without what may be a password in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


def log_report(
    uri: str,
    run_id: str,
    metrics: Mapping[str, float],
    files: Sequence[str],
    timeout_s: float = REPORT_TIMEOUT_S,
) -> None:
    """Adds the final report to a run that has ended: metrics, and files as artifacts.

    Raises what MLflow raises, and TimeoutError.
    """
    failures: list[BaseException] = []

    def write() -> None:
        import mlflow

        try:
            client = mlflow.MlflowClient(uri)
            for name, value in metrics.items():
                client.log_metric(run_id, name, value)
            for file in files:
                client.log_artifact(run_id, file)
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write, daemon=True)  # libraries try again for minutes
    writer.start()
    writer.join(timeout_s)
    if writer.is_alive():
        raise TimeoutError(f"no answer within {timeout_s:.0f} s")
    if failures:
        raise failures[0]
