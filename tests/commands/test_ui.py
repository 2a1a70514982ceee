"""`sid-ray ui`: MLflow on a folder of runs."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import mlflow
import pytest

from sid_ray.commands.ui import check_free, run_ui, store_of
from sid_ray.errors import UserError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_folder_without_runs_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"mlflow\.db is missing"):
        store_of(str(tmp_path))
    (tmp_path / "mlflow.db").touch()
    assert store_of(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_server_of_its_own_is_pointed_at(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    told = []
    assert run_ui(str(tmp_path), "127.0.0.1", 1, told.append) == 0
    assert "http://tracking.example:5000" in told[0]


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose another --port"):
            check_free("127.0.0.1", taken.getsockname()[1])


@pytest.mark.slow
def test_the_pages_are_served_until_ctrl_c(tmp_path):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.create_run(client.create_experiment("sid_ray"), run_name="one")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "sid_ray.cli", "ui", str(tmp_path), "--port", str(port)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"MLFLOW_TRACKING_URI": ""},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        assert process.stdout.readline().startswith(f"http://127.0.0.1:{port} ")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"MLflow" in page.read()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    check_free("127.0.0.1", port)
