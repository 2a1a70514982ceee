"""States of a tracking store that waiting cannot mend, told from those that pass by themselves.

``look`` finds them before a run starts, without loading MLflow where the store is sqlite or a
server that answers; ``advice`` knows them in what MLflow raises while a run works. Both say what a
person can do. A store that merely does not answer now is none: what is told is kept and sent later.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import sqlite3
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sid_ray.config.distill_config import DistillConfig
from sid_ray.errors import UserError
from sid_ray.run_folder import tracking_uri
from sid_ray.storage.places import database_of
from sid_ray.tracking.mlflow_run import BOUNDS, UNWRITABLE, error_line, shown_uri, signed_in
from sid_ray.tracking.mlflow_sqlite import (
    NEWER,
    OLDER,
    Experiment,
    artifacts_of,
    check_writable,
    look_in_database,
    path_of,
)

ANSWER_S = 5.0  # for a server before a run starts
SAID = 120  # characters of what a store says
OPEN_S = 20.0  # for MLflow itself: it loads for seconds, and tries a database again and again
OTHER_STORE = "name another store with --output.tracking-uri or MLFLOW_TRACKING_URI"
MADE_ANEW = "a new one gets all that the tracking.jsonl of its runs hold"
CREDENTIALS = (
    "it refuses the credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
    "MLFLOW_TRACKING_TOKEN, of a user who may write there"
)
# What MLflow, SQLAlchemy, sqlite or a server says -> what it means, and what to do.
STATES = {
    r"PERMISSION_DENIED|UNAUTHENTICATED|error code 40[13]\b|HTTP 40[13]\b": CREDENTIALS,
    r"password authentication failed|Access denied for user": (
        "it refuses the user or the password in its address: correct MLFLOW_TRACKING_URI"
    ),
    r"ENDPOINT_NOT_FOUND|error code 40[45]\b|HTTP 40[45]\b|not in a valid JSON|no JSON": (
        "what answers there is no MLflow server: correct the address in --output.tracking-uri or "
        "MLFLOW_TRACKING_URI"
    ),
    NEWER: (
        "a newer MLflow made its tables: pip install --upgrade mlflow to that version, or "
        + OTHER_STORE
    ),
    OLDER: "an older MLflow made its tables: copy the file, then run  mlflow db upgrade {uri}",
    r"file is not a database": (
        f"the file is no sqlite database: move it away ({MADE_ANEW}), or {OTHER_STORE}"
    ),
    r"disk image is malformed": (f"the file is damaged: restore it, or move it away: {MADE_ANEW}"),
    r"readonly database|unable to open database file": (
        f"the file or its folder cannot be written: change its rights, or {OTHER_STORE}"
    ),
    r"maintenance mode": (
        "MLflow gave up stores of plain files: name a server or sqlite:///FILE with "
        "--output.tracking-uri or MLFLOW_TRACKING_URI"
    ),
    r"unsupported URI|Could not parse|load plugin|(?i:invalid url)|InvalidSchema|No host supplied"
    r"|Unity Catalog|Databricks credential": (
        "MLflow knows no store of that kind: give http://HOST:PORT or sqlite:///FILE in "
        "--output.tracking-uri or MLFLOW_TRACKING_URI"
    ),
    r"No module named '(\w+)'": (
        "the Python driver of that database is missing (module {0}): install it, or " + OTHER_STORE
    ),
    r"CERTIFICATE_VERIFY_FAILED|SSLError|\[SSL": (
        "its certificate is not trusted, or it speaks no HTTPS: set "
        "MLFLOW_TRACKING_SERVER_CERT_PATH, or correct the address"
    ),
}


class AwayError(Exception):
    """A store that does not answer now; says why."""


def advice(error: BaseException, uri: str, experiment: str) -> str:
    """What a person can do where waiting cannot mend it; empty where it can."""
    text = f"{type(error).__name__} {getattr(error, 'error_code', '')} {error}"
    gone = re.search(r"experiment (\S+) must be in the 'active' state", text)
    if gone:
        return deleted(uri, experiment, gone[1])
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        what = f"{error.filename} cannot be written ({error.strerror})"
        return f"{what}: change its rights, or {OTHER_STORE}"
    for pattern, said in STATES.items():
        if found := re.search(pattern, text):
            return said.format(*found.groups(), uri=shlex.quote(shown_uri(uri)))
    return ""


def deleted(uri: str, experiment: str, number: str) -> str:
    store = f"MLFLOW_TRACKING_URI={shlex.quote(shown_uri(uri))}"
    return (
        f"experiment {experiment!r} was deleted there: restore it with  {store} mlflow experiments "
        f"restore --experiment-id {number}  or give --output.experiment another name"
    )


# Before a run starts ------------------------------------------------------------------------------


def check_tracking(config: DistillConfig) -> None:
    """Raises UserError where a run could tell its store nothing, however long it waited."""
    with contextlib.suppress(AwayError):  # the run says so, and goes on
        look_at_tracking(config)


def look_at_tracking(config: DistillConfig) -> str:
    """look_at_store for a config whose output.folder is runs_folder's."""
    uri = tracking_uri(config)
    artifacts = "" if uri.startswith("http") else artifacts_of(uri, config.output.folder)
    return look_at_store(uri, config.output.experiment, path_of(artifacts))


def look_at_store(uri: str, experiment: str, local_artifacts: str = "") -> str:
    """What a run would find in its store, in words.

    Args:
        local_artifacts: where a new experiment would keep artifacts, where that is a path.

    Raises UserError in one line for a state that waiting cannot mend, AwayError.
    """
    where = shown_uri(uri)
    try:
        found = found_in(uri, experiment)
    except AwayError:
        raise
    except Exception as error:  # whatever a store, a driver or a library raises
        told = advice(error, uri, experiment)
        if told:
            said = error_line(error)[:SAID]
            raise UserError(f"MLflow at {where}: {told} (it says: {said})") from None
        raise AwayError(error_line(error)) from None
    if found is None:
        check_artifacts(where, local_artifacts)
        return f"{where}: experiment {experiment!r} will be made"
    if not found.active:
        raise UserError(f"MLflow at {where}: {deleted(uri, experiment, found.number)}")
    check_artifacts(where, path_of(found.artifacts))
    return f"{where}: experiment {experiment!r}"


def check_artifacts(where: str, path: str) -> None:
    """Raises UserError where artifacts could not be written to a path."""
    if not path:
        return
    try:
        check_writable(Path(path))
    except OSError as error:
        raise UserError(
            f"MLflow at {where} keeps the files of this experiment in {path}, which cannot be "
            f"written here ({error.strerror}): change its rights, or give --output.experiment "
            "another name"
        ) from None


def found_in(uri: str, experiment: str) -> Experiment | None:
    """The experiment, None where there is none yet. Raises whatever the store raises."""
    database = database_of(uri)
    if database is not None:
        try:
            return look_in_database(database, experiment)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):  # a moment's work of another run
                raise AwayError("another process has locked it") from None
            raise
    if uri.startswith(("http://", "https://")):
        if not urllib.parse.urlsplit(uri).hostname:
            raise ValueError("Invalid URL")
        try:
            return told_by_server(uri, experiment)
        except (urllib.error.HTTPError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code >= 500:
                raise AwayError(f"HTTP {error.code}") from None
            # MLflow itself has more ways to sign in; what it says, counts
        except urllib.error.URLError as error:
            if "SSL" not in str(error):
                raise AwayError(str(error.reason)) from None
        except OSError as error:
            raise AwayError(str(error)) from None
    return in_time(lambda: told_by_mlflow(uri, experiment), OPEN_S)


def told_by_server(uri: str, experiment: str) -> Experiment | None:
    """A server's own answer. Raises urllib.error.URLError, OSError, and ValueError for no JSON."""
    address = signed_in(uri).rstrip("/")
    query = urllib.parse.urlencode({"experiment_name": experiment})
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/get-by-name?{query}", headers=credentials()
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            told = json.loads(answer.read())["experiment"]
    except urllib.error.HTTPError as error:
        if error.code == 404 and b"RESOURCE_DOES_NOT_EXIST" in error.read():
            return None
        raise
    except (KeyError, TypeError) as error:
        raise ValueError("no JSON of MLflow") from error
    stage = told.get("lifecycle_stage", "active")
    return Experiment(str(told["experiment_id"]), stage == "active", told["artifact_location"])


def credentials() -> dict[str, str]:
    name, password = (
        os.environ.get(f"MLFLOW_TRACKING_{what}", "") for what in ("USERNAME", "PASSWORD")
    )
    if name and password:
        both = base64.b64encode(f"{name}:{password}".encode()).decode()
        return {"Authorization": f"Basic {both}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}


def told_by_mlflow(uri: str, experiment: str) -> Experiment | None:
    """What MLflow itself finds. Raises what it raises."""
    import mlflow

    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
    client = mlflow.MlflowClient(signed_in(uri))
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    if not found.experiment_id:
        raise ValueError("no JSON of MLflow")
    active = found.lifecycle_stage == "active"
    return Experiment(found.experiment_id, active, found.artifact_location)


def in_time(work: Callable[[], Any], limit_s: float) -> Any:
    """What a call returns or raises. Raises AwayError where it takes longer."""
    said: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            said.append((True, work()))
        except Exception as error:  # handed over
            said.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not said:
        raise AwayError(f"no answer within {limit_s:.0f} s")
    good, value = said[0]
    if not good:
        raise value
    return value
