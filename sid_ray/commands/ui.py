"""`sid-ray ui`: MLflow's pages on the store of a folder of runs."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval
from tyro.conf import Positional, arg

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.run_folder import runs_folder, tracking_uri
from sid_ray.storage.places import database_of
from sid_ray.tracking.mlflow_run import shown_uri
from sid_ray.tracking.mlflow_sqlite import put_right
from sid_ray.tracking.mlflow_state import advice

READY_S = 120.0


@dataclass(frozen=True)
class UiOptions:
    """Opens MLflow's pages on a folder of runs."""

    folder: Annotated[str, Positional, arg(metavar="FOLDER")] = "runs"
    """The folder of all runs, a path or s3://."""
    host: str = "127.0.0.1"
    """Address to listen on. Whoever reaches it may change what is stored."""
    port: Annotated[int, Interval(ge=1, le=65535)] = 5000
    """Port to listen on."""


def ui(options: UiOptions) -> int:
    return run_ui(options.folder, options.host, options.port)


def store_of(folder: str) -> str:
    """The MLflow store of a folder of runs. Raises UserError where there is none yet."""
    uri = tracking_uri(replace(DistillConfig(), output__folder=runs_folder(folder)))
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not path.is_file():
        raise UserError(
            f"no runs in {folder}: {path} is missing; name the folder of all runs, or the store "
            "with MLFLOW_TRACKING_URI"
        )
    return uri


def put_right_for(uri: str) -> str:
    """Points a sqlite store at the artifacts beside it. Returns '' or a line. Raises UserError."""
    database = database_of(uri)
    if database is None:
        return ""
    try:
        return put_right(database)
    except (sqlite3.Error, OSError) as error:
        told = advice(error, uri, "") or "another process works on it: try again"
        raise UserError(f"MLflow at {shown_uri(uri)}: {told} (it says: {error})") from None


def check_free(host: str, port: int) -> None:
    """Raises UserError where something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = f"port {port} of {host}: {error.strerror}"
            raise UserError(f"{what}; choose another --port") from None


def page_answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2):
            return True
    except (OSError, urllib.error.URLError):
        return False


def run_ui(folder: str, host: str, port: int, tell: Callable[[str], None] = print) -> int:
    """Serves until Ctrl-C; returns the exit code. Raises UserError."""
    uri = store_of(folder)
    if uri.startswith(("http://", "https://")):
        tell(f"{uri}: a server of its own keeps these runs; open it")
        return 0
    check_free(host, port)
    if line := put_right_for(uri):
        tell(line)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=said, stderr=said) as it,
    ):
        try:
            if not starts(it, f"http://{host}:{port}"):
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines() or ["no answer"]
                raise UserError(f"MLflow did not start on {uri}: {lines[-1]:.300}")
            tell(f"http://{host}:{port}   (Ctrl-C ends it)")
            return it.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            it.terminate()


def starts(server: subprocess.Popen, address: str) -> bool:
    """Whether a server answers, after some time."""
    until = time.monotonic() + READY_S
    while not page_answers(address):
        if server.poll() is not None or time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True
