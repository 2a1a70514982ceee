"""Records on their way to MLflow: written to the journal first, sent by a thread, in order.

A store that fails is tried again for as long as the process lives; its callers never wait for it.
What is left at the end is sent by the next start of the run.
"""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from sid_ray.metrics.names import BEST, EVAL
from sid_ray.storage.errors import pause_s
from sid_ray.tracking.best_scores import BestScores
from sid_ray.tracking.journal import Journal, JournalRecord
from sid_ray.tracking.mlflow_artifacts import SLOWEST, model_files
from sid_ray.tracking.mlflow_run import MlflowRun, RefusedRecordError, Target, error_line, shown_uri
from sid_ray.tracking.mlflow_state import advice

VALUES = 900  # metrics in one request; MLflow takes 1000
TOLD_AFTER = 2  # failures in a row before a line says so: two writers of one sqlite may collide
TIMEOUT_S = 60.0  # for what is left at the end, while it is being sent
AWAY_PATIENCE_S = 10.0  # the same where MLflow does not answer


class Tracking:
    """Keeps records and sends them.

    Args:
        target: MLflow's run.
        folder: the run's, on the driver's disk.
        tell: takes lines for a person.
        run: what talks to MLflow; another one in tests.
        hold_s: how long a new run's first numbers wait for a score. MLflow's pages show metrics in
            the order in which they first came; scores shall be the first.
        rest_s: how long nothing is sent unless ``wake`` or ``finish`` is called. Loading MLflow and
            making its tables takes seconds of a CPU that others may need first.
    """

    def __init__(
        self,
        target: Target,
        folder: Path,
        tell: Callable[[str], None] = lambda text: None,
        run: Any = None,
        hold_s: float = 0.0,
        rest_s: float = 0.0,
    ):
        self._rest_s, self._awake = rest_s, threading.Event()
        self._began, self._hold_s = time.monotonic(), hold_s
        self._folder, self._tell, self._uri = folder, tell, shown_uri(target.uri)
        self._journal = Journal(folder, target.key, tell)
        if run is None and target.run_id is None and self._journal.sent_to:
            # Killed before it was noted in run.json.
            target = dataclasses.replace(target, run_id=self._journal.sent_to)
        self._run = run or MlflowRun(target, folder, tell)
        self._open, self._closed = False, False
        self._changed, self._hurry = threading.Condition(), threading.Event()
        self._pending = deque(self._journal.records(self._journal.sent))
        self._failures, self._away_since, self._stamp = 0, 0.0, 0
        self._experiment = target.experiment
        self._until = float("inf")
        self.trouble = ""  # why MLflow does not answer now
        self.advice = ""  # what a person can do about it, where waiting cannot mend it
        self._said: set[str] = set()  # why records were refused
        self.run_id = ""  # MLflow's id of the run, once it is open
        self._best = self._best_told()
        self._sender = threading.Thread(target=self._send_all, daemon=True)
        self._sender.start()

    @property
    def left(self) -> int:
        """Records that MLflow has not confirmed."""
        return len(self._pending)

    def metrics(self, metrics: Mapping[str, float], images_seen: int) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._add("metrics", metrics=values, step=images_seen, stamp=True)

    @property
    def best(self) -> dict[str, float]:
        """best/NAME of each score, over all starts of the run."""
        return self._best.told()

    def scores(
        self, scores: Mapping[str, float], images_seen: int
    ) -> tuple[dict[str, float], frozenset[str]]:
        """Scores of the weights at images_seen, by name.

        Returns what is told of them, eval/NAME and best/NAME, and the names of those scores whose
        best value is this one.
        """
        with self._changed:
            new, best = self._best.see(scores, images_seen), self._best.told()
        told = {EVAL + name: float(value) for name, value in scores.items()}
        told |= {BEST + name: best[BEST + name] for name in scores if BEST + name in best}
        self.metrics(told, images_seen)
        return told, new

    def image(self, key: str, file: Path, images_seen: int) -> None:
        """An image file as MLflow's image ``key`` at a step. The file must stay until the end."""
        self._add("image", key=key, file=self._short(file), step=images_seen, stamp=True)

    def file(self, file: Path, folder: str = "") -> None:
        """A file as an artifact in ``folder`` there. It must stay until the end of the run."""
        self._add("file", file=self._short(file), folder=folder)

    def model(
        self,
        folder: Path,
        name: str,
        images_seen: int,
        description: str,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """A network's folder (model.safetensors, model.json, README.md) as artifacts of the run.

        Args:
            folder: must stay until the end of the run.
            name: of the registered model that gets a version of it; empty for none.
            scores: tags of the version; None for those told at images_seen.
        """
        tags = self._scores_at(images_seen) if scores is None else dict(scores)
        self._add(
            "model",
            folder=self._short(folder),
            name=name,
            step=images_seen,
            description=description,
            scores=tags,
        )

    def tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run; the newest value of each counts."""
        self._add("tags", tags=dict(tags))

    def child(self, run_id: str) -> None:
        """MLflow's pages show another run of the store below this one."""
        self._add("child", run_id=run_id)

    def status(self, status: str) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        self._add("status", status=status)

    def allow(self, left_s: float) -> None:
        """Nothing is sent later than so many seconds from now, until this is called again.

        For a driver that another one may take the run from: a step must not be told twice.
        """
        with self._changed:
            self._until = time.monotonic() + left_s
            self._changed.notify_all()

    def wake(self) -> None:
        """Records are sent from now on."""
        self._awake.set()

    def finish(self, timeout_s: float = TIMEOUT_S, close: bool = True) -> str:
        """Waits until all is sent, for a limited time. Returns '' or what is left, and why.

        Without ``close`` records may follow: workers that are about to be stopped still tell some.
        """
        began = time.monotonic()
        self.wake()
        timeout_s += self._weights_s()
        with self._changed:
            self._failures, self._hold_s = min(self._failures, TOLD_AFTER), 0.0
            self._hurry.set()
            while self._pending:
                waited_s = time.monotonic() - began
                if waited_s > (min(AWAY_PATIENCE_S, timeout_s) if self.trouble else timeout_s):
                    break
                if self.advice and self._failures > TOLD_AFTER:  # tried once more, just now
                    break
                self._changed.wait(0.1)
            left, self._closed = self.left, close
            self._changed.notify_all()
            self._hurry.set()
        if close:
            self._journal.close()
        if not left:
            return ""
        kept = self._journal.trouble
        where = f"could not be kept ({kept})" if kept else f"are kept in {self._folder}"
        why = self.trouble or f"not written within {timeout_s:.0f} s"
        then = "" if kept else ": the same command sends them"
        if self.advice:
            then = f": {self.advice}; the same command then sends them"
        return f"{left} records are not in MLflow ({why}), they {where}{then}"

    def _short(self, file: Path) -> str:
        inside = file.is_relative_to(self._folder)
        return str(file.relative_to(self._folder) if inside else file.absolute())

    def _add(self, kind: str, **values: Any) -> None:
        with self._changed:
            if "stamp" in values:  # MLflow orders a metric's values by it; clocks may go back
                self._stamp = values["stamp"] = max(self._stamp, int(time.time() * 1000))
            self._pending.append(self._journal.append(kind, values))
            self._changed.notify_all()

    def _best_told(self) -> BestScores:
        """The best scores of earlier starts, whether MLflow has them yet or not."""
        best = BestScores()
        for record in self._journal.records(0):
            told, step = record.values.get("metrics", {}), record.values.get("step", 0)
            best.see(without(EVAL, told), step)
            best.learn({name: (value, step) for name, value in without(BEST, told).items()})
        return best

    def _scores_at(self, images_seen: int) -> dict[str, float]:
        """What was told of the weights at images_seen, the first time."""
        found: dict[str, float] = {}
        for record in self._journal.records(0):
            if record.kind == "metrics" and record.values["step"] == images_seen:
                found = without(EVAL, record.values["metrics"]) | found
        return found

    def _weights_s(self) -> float:
        """Seconds that weights on their way may take."""
        with self._changed:
            folders = [r.values["folder"] for r in self._pending if r.kind == "model"]
        files = [file for folder in folders for file in model_files(self._folder / folder)]
        return sum(file.stat().st_size for file in files) / SLOWEST

    def _send_all(self) -> None:
        self._awake.wait(self._rest_s)
        while self._wait():
            try:
                self._send()
            except Exception as error:  # any store, any trouble
                self._failed(error)
            else:
                self._works()

    def _wait(self) -> bool:
        """Until there is something to send and the time to do it; False at the end."""
        if self._failures:
            self._hurry.wait(pause_s(self._failures - 1))
        with self._changed:
            self._hurry.clear()
            self._changed.wait_for(lambda: self._may_send() or self._closed)
            while self._held() and not self._closed:
                self._changed.wait(0.1)
            return bool(self._pending) and not self._closed

    def _may_send(self) -> bool:
        return bool(self._pending) and time.monotonic() < self._until

    def _held(self) -> bool:
        """Whether the first numbers of a run wait for a score to come with them."""
        if not self._hold_s or not self._pending or self._pending[0].kind != "metrics":
            return False
        scored = any(
            name.startswith(EVAL)
            for record in self._pending
            if record.kind == "metrics"
            for name in record.values["metrics"]
        )
        if scored or time.monotonic() - self._began > self._hold_s:
            self._hold_s = 0.0
        return bool(self._hold_s)

    def _send(self) -> None:
        """One try of the next records. Raises what MLflow raises."""
        if not self._open:
            self._run.open()
            self._is_open()
        batch = self._batch()
        try:
            self._run.write(batch)
        except RefusedRecordError as error:
            if len(batch) > 1:  # which of them is to be found out
                for record in batch:
                    self._send_one(record)
                return
            self._refused(batch[0], error)
        self._confirm(batch)

    def _send_one(self, record: JournalRecord) -> None:
        try:
            self._run.write([record])
        except RefusedRecordError as error:
            self._refused(record, error)
        self._confirm([record])

    def _refused(self, record: JournalRecord, error: RefusedRecordError) -> None:
        why = re.sub(r"\d+|[0-9a-f]{32}", "", f"{record.kind} {error}")
        if why not in self._said:  # the same place refuses every picture
            self._said.add(why)
            self._tell(f"warning: record {record.number} ({record.kind}) is not in MLflow: {error}")

    def _is_open(self) -> None:
        """A run that is another one than before gets all that was ever told."""
        journal, run_id = self._journal, self._run.run_id
        with self._changed:
            self._open, self.run_id = True, run_id
            if journal.sent_to and journal.sent_to != run_id:
                self._pending = deque(journal.records(0))
            self._best.learn(self._run.best)
        journal.confirm(self._pending[0].number - 1, run_id)

    def _batch(self) -> list[JournalRecord]:
        """The next record, with the metrics that follow where it is metrics."""
        with self._changed:
            if self._pending[0].kind != "metrics":
                return [self._pending[0]]
            batch: list[JournalRecord] = []
            values = 0
            for record in takewhile(lambda record: record.kind == "metrics", self._pending):
                values += len(record.values["metrics"])
                if batch and values > VALUES:
                    break
                batch.append(record)
            return batch

    def _confirm(self, batch: Sequence[JournalRecord]) -> None:
        with self._changed:
            for _ in batch:
                self._pending.popleft()
            self._journal.confirm(batch[-1].number, self._run.run_id)
            self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        self._open = False
        self._failures += 1
        if self._failures == 1:
            self._away_since = time.monotonic()
        told = advice(error, self._uri, self._experiment)
        if told and told != self.advice:
            self._tell(f"warning: MLflow at {self._uri} takes no numbers: {told}; they are kept")
        elif not told and self._failures < TOLD_AFTER:
            return
        elif not told and not self.trouble:
            self._tell(
                f"MLflow does not answer at {self._uri} ({error_line(error)}): numbers "
                f"are kept and "
                "sent later"
            )
        self.trouble, self.advice = error_line(error), told

    def _works(self) -> None:
        if self.trouble:
            away_s = time.monotonic() - self._away_since
            self._tell(f"MLflow is back after {away_s:.0f} s: {self.left} records are left to send")
        self._failures, self.trouble, self.advice = 0, "", ""


def without(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Those metrics whose name begins with it, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


@dataclasses.dataclass(frozen=True)
class Model:
    """Arguments of ``Tracking.model``."""

    folder: Path
    name: str
    images_seen: int
    description: str
    scores: Mapping[str, float] | None = None


def send_report(
    target: Target,
    folder: Path,
    metrics: Mapping[str, float],
    files: Sequence[Path],
    images_seen: int,
    timeout_s: float = TIMEOUT_S,
    model: Model | None = None,
) -> tuple[str, str]:
    """Sends what is left of a run that has ended, its report and its generator.

    Returns MLflow's id of the run where it was opened, and '' or what is left, and why.
    """
    tracking = Tracking(target, folder)
    if metrics:
        tracking.metrics(metrics, images_seen)
    for file in files:
        tracking.file(file)
    if model is not None:
        tracking.model(model.folder, model.name, model.images_seen, model.description, model.scores)
    left = tracking.finish(timeout_s)
    return tracking.run_id, left
