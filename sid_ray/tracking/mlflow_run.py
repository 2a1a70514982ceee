"""One run in MLflow: found or begun, and told each record once.

The only module that talks to MLflow. It does one try; ``sender.py`` tries again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sid_ray.metrics.names import BEST, larger_is_better, shown_last
from sid_ray.storage.durable import LOCK, HeldError, lock
from sid_ray.storage.places import database_of
from sid_ray.tracking.journal import LOCK_S, JournalRecord
from sid_ray.tracking.mlflow_artifacts import Artifacts
from sid_ray.tracking.mlflow_sqlite import is_there, put_right

PARAM_LIMIT = 6000  # characters MLflow keeps of a param value
OLD_PARAM_LIMIT = 250  # that any version keeps
BATCH = 100  # params MLflow takes at once
KEY_TAG = "sid_ray.run_key"
WHERE_TAG = "folder"  # of all runs, as of the last start
LEASE_TAG = "sid_ray.lease"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
# Of a store without a registry of models, or one that this user may not write to: what comes behind
# a model must not wait for that. Numbers wait, as a right may be given.
NO_REGISTRY = ("PERMISSION_DENIED", "FEATURE_DISABLED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
NO_UPLOAD = (400, 404, 405, 413)  # HTTP: a server that takes no artifacts, or none as large
GONE = "RESOURCE_DOES_NOT_EXIST"
DELETED = "must be in the 'active' state"  # of a run or an experiment: no fault of a record
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
FILES = ("file", "image", "model")
CAUSE = r"\[Errno -?\d+\] [\w ]+|(?i:read timed out|connection aborted|connection reset)"
# MLflow's own tries take minutes; a server that is away shall be noticed within seconds.
BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}


class RefusedRecordError(Exception):
    """MLflow, or the record itself, is such that trying again is no use; says why."""


@dataclass(frozen=True)
class Target:
    """Which run of which store.

    Args:
        uri: of the tracking store.
        key: of the run (RunRecord.key), by which it is found again where its id is not known.
        artifacts: where a new experiment keeps artifacts; a server decides that itself.
        run_id: MLflow's id of the run, None where there was none yet.
        lease: number of the driver's lease; a run that a newer one has told of is not told.
    """

    uri: str
    experiment: str
    run_name: str
    key: str
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    artifacts: str
    run_id: str | None = None
    lease: int = 0


class MlflowRun:
    """Writes records to MLflow. All methods but ``__init__`` raise what MLflow raises."""

    def __init__(self, target: Target, folder: Path, tell: Callable[[str], None]):
        self._target, self._folder, self._tell = target, folder, tell
        self._client: Any = None
        self._there: dict[str, set[int]] = {}
        self.run_id = target.run_id or ""
        self.best: dict[str, tuple[float, int]] = {}  # of each score: value, images seen by then
        self._artifacts: Artifacts

    def open(self) -> None:
        """Finds the run, by its id or its key, or begins it."""
        for name, value in BOUNDS.items():
            os.environ.setdefault(name, value)
        with only_opener(self._target.uri):
            database = database_of(self._target.uri)
            if database is not None:
                make_tables(self._target.uri, database)
                if moved := put_right(database):
                    self._tell(moved)
            self._open()

    def _open(self) -> None:
        import mlflow

        uri = signed_in(self._target.uri)
        mlflow.set_tracking_uri(uri)
        self._client = mlflow.MlflowClient(uri)
        self._there.clear()  # what an earlier failure left half done is not known
        experiment = self._experiment()
        run = self._known() or self._found(experiment)
        if run is None:
            run = self._begun(experiment)
        self.run_id = run.info.run_id
        self._claim(run)
        self._describe(run)
        where = self._target.tags.get(WHERE_TAG, "")
        if run.data.tags.get(WHERE_TAG, "") != where:
            self._client.set_tag(self.run_id, WHERE_TAG, where)
        self._artifacts = Artifacts(
            self._client, self.run_id, run.info.artifact_uri, self._target.key
        )
        if not self.best:
            self.best = self._best(run)

    def write(self, records: Sequence[JournalRecord]) -> None:
        """Records of kind ``metrics``, or one other. What MLflow has is not written again.

        Raises RefusedError.
        """
        from mlflow.exceptions import MlflowException
        from requests import HTTPError

        models = any(record.kind == "model" for record in records)
        files = any(record.kind in FILES for record in records)
        try:
            for record in records:
                if record.kind != "metrics":
                    getattr(self, f"_write_{record.kind}")(**record.values)
            self._write_metrics([r.values for r in records if r.kind == "metrics"])
        except MlflowException as error:
            refused = error.error_code in (*REFUSED, *(NO_REGISTRY if models else ()))
            if refused and DELETED not in str(error):
                raise RefusedRecordError(error_line(error)) from error
            raise
        except HTTPError as error:  # of artifacts alone
            if error.response is not None and error.response.status_code in NO_UPLOAD:
                raise RefusedRecordError(error_line(error)) from error
            raise
        except OSError as error:  # a place for artifacts that cannot be written; a full disk waits
            if files and error.errno in UNWRITABLE:
                raise RefusedRecordError(f"{error.filename}: {error.strerror}") from error
            raise

    def _best(self, run: Any) -> dict[str, tuple[float, int]]:
        found = {}
        for name in (name for name in run.data.metrics if name.startswith(BEST)):
            sign = -1 if larger_is_better(name) else 1
            told = self._client.get_metric_history(self.run_id, name)
            value, step = min((sign * point.value, point.step) for point in told)
            found[name.removeprefix(BEST)] = sign * value, step
        return found

    def _known(self) -> Any:
        from mlflow.exceptions import MlflowException

        if not self.run_id:
            return None
        try:
            run = self._client.get_run(self.run_id)
            if run.info.lifecycle_stage == "active":
                return run
        except MlflowException as error:
            if error.error_code != GONE:
                raise
        shown = shown_uri(self._target.uri)
        self._tell(f"MLflow run {self.run_id} is not in {shown}: all is sent to a new one")
        return None

    def _experiment(self) -> str:
        """Its id. Asked before the run: those of a deleted experiment look deleted themselves."""
        from mlflow.exceptions import MlflowException

        target = self._target
        found = self._client.get_experiment_by_name(target.experiment)
        if found and found.lifecycle_stage != "active":
            raise MlflowException(f"The experiment {found.experiment_id} {DELETED}")
        if found:
            return found.experiment_id
        location = None if target.uri.startswith("http") else target.artifacts
        return self._client.create_experiment(target.experiment, artifact_location=location)

    def _found(self, experiment: str) -> Any:
        """The run that was begun, though its begin was not confirmed or noted."""
        text = f"tags.`{KEY_TAG}` = '{self._target.key}'"
        runs = self._client.search_runs([experiment], text, max_results=1)
        return runs[0] if runs else None

    def _begun(self, experiment: str) -> Any:
        tags = {**self._target.tags, KEY_TAG: self._target.key}
        return self._client.create_run(experiment, run_name=self._target.run_name, tags=tags)

    def _claim(self, run: Any) -> None:
        """Notes whose turn it is to tell the run. Raises RefusedError where it is a newer one's."""
        newest = int(run.data.tags.get(LEASE_TAG, 0))
        if newest > self._target.lease:
            raise RefusedRecordError(
                f"a newer driver tells MLflow run {self.run_id} (lease {newest})"
            )
        if newest < self._target.lease:
            self._client.set_tag(self.run_id, LEASE_TAG, self._target.lease)

    def _describe(self, run: Any) -> None:
        """Logs params that are not there yet; those that changed since the begin stay."""
        from mlflow.entities import Param

        params = [
            Param(name, str(value)[:PARAM_LIMIT])
            for name, value in self._target.params.items()
            if name not in run.data.params
        ]
        for first in range(0, len(params), BATCH):
            self._log_params(run.info.run_id, params[first : first + BATCH])

    def _log_params(self, run_id: str, params: Sequence[Any]) -> None:
        """A server of an older MLflow takes shorter values; one that it refuses is cut."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(run_id, params=params)
            return
        except MlflowException as error:
            if error.error_code not in REFUSED or DELETED in str(error):
                raise
        for param in params:
            try:
                self._client.log_param(run_id, param.key, param.value)
            except MlflowException as error:
                if error.error_code not in REFUSED:
                    raise
                cut = Param(param.key, param.value[:OLD_PARAM_LIMIT])
                self._tell(f"warning: param {cut.key} is cut in MLflow: {error_line(error)}")
                with contextlib.suppress(MlflowException):  # refused for another reason
                    self._client.log_param(run_id, cut.key, cut.value)

    def _steps(self, name: str) -> set[int]:
        """The steps at which MLflow has a value of a metric."""
        if name not in self._there:
            history = self._client.get_metric_history(self.run_id, name)
            self._there[name] = {point.step for point in history}
        return self._there[name]

    def _write_metrics(self, values: Sequence[Mapping[str, Any]]) -> None:
        """The first value of a metric at a step counts.

        Draws are keyed by images seen, so a resumed run repeats the same numbers between its
        checkpoint and the moment it was cut.
        """
        from mlflow.entities import Metric

        new = {
            (name, told["step"]): Metric(name, value, told["stamp"], told["step"])
            for told in reversed(values)
            for name, value in told["metrics"].items()
            if told["step"] not in self._steps(name)
        }
        if new:
            first = sorted(new.values(), key=lambda metric: (shown_last(metric.key), metric.step))
            self._client.log_batch(self.run_id, metrics=first)
        for name, step in new:
            self._there[name].add(step)

    def _write_status(self, status: str) -> None:
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status=status)

    def _write_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)

    def _write_child(self, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_tag(run_id, PARENT_TAG, self.run_id)
        except MlflowException as error:
            if error.error_code in (GONE, "INVALID_STATE") or DELETED in str(error):
                raise RefusedRecordError(f"MLflow run {run_id} is not there") from error
            raise

    def _write_file(self, file: str, folder: str) -> None:
        self._artifacts.file(self._existing(file), folder)

    def _write_image(self, key: str, file: str, step: int, stamp: int) -> None:
        self._artifacts.image(key, self._existing(file), step, stamp)

    def _write_model(
        self, folder: str, name: str, step: int, description: str, scores: Mapping[str, float]
    ) -> None:
        weights = self._existing(f"{folder}/model.safetensors")
        self._artifacts.model(weights.parent, step, name, description, scores)

    def _existing(self, file: str) -> Path:
        path = self._folder / file  # an absolute one stays
        if not path.is_file():
            raise RefusedRecordError(f"{path} is not there any more")
        return path


@contextmanager
def only_opener(uri: str) -> Iterator[None]:
    """Of all processes that would open one sqlite, one at a time.

    The first one makes MLflow's tables; two at once stumble over each other's, and could leave a
    store that is half made. Raises OSError where another one takes too long.
    """
    database = database_of(uri)
    if database is None:
        yield
        return
    with Path(f"{database}{LOCK}").open("ab") as file:
        try:
            lock(file.fileno(), patience_s=LOCK_S)
        except HeldError:
            raise
        except OSError:  # this file system has no locks
            pass
        yield


def make_tables(uri: str, database: Path) -> None:
    """Makes MLflow's tables of a store that is not there, whole or not at all.

    MLflow makes them one after another, for seconds: a process that is killed meanwhile would leave
    a store that MLflow calls out of date and never opens again. Raises what MLflow raises.
    """
    if "?" in uri or database.name in ("", ":memory:"):
        return  # no plain file
    if is_there(database) and database.stat().st_size:
        return
    import mlflow

    new = Path(f"{database}.new")
    new.unlink(missing_ok=True)  # of a process that was killed
    mlflow.MlflowClient(f"{uri}.new")
    new.replace(database)


def signed_in(uri: str) -> str:
    """A server's address without its user and password, which MLflow then finds in the environment.

    MLflow prints the address that it is given.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.password is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    return shown_uri(uri)


def shown_uri(uri: str) -> str:
    """An address without what may be a password in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


def error_line(error: BaseException) -> str:
    """An error's first line, short and without passwords; of a network's error the cause."""
    text = shown_uri(str(error).strip() or type(error).__name__)
    cause = re.search(CAUSE, text) if "HTTP" in text else None
    return cause[0] if cause else text.splitlines()[0][:200]
