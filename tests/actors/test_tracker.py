"""What the tracker says and how long it waits; its store is faked."""

import sys
import threading
import time
from types import SimpleNamespace

import pytest

from sid_ray.actors.tracker import Board, Tracker, log_report, shown_uri


@pytest.fixture
def tracker():
    """One that writes nowhere."""
    kind = Tracker.__ray_metadata__.modified_class
    made = kind.__new__(kind)
    made._board, made._lock, made._said = Board(), threading.Lock(), {}
    return made


def test_a_line_of_several_ranks_is_said_once_whatever_seconds_they_measured(tracker):
    for seconds in ("11 s", "12 s", "9.5 s"):
        tracker.event(f"storage is back after {seconds}: checkpoint_1 is uploaded")
    tracker.event("storage is back after 1 s: checkpoint_2 is uploaded")
    assert len(tracker.board().events) == 2


def test_a_report_waits_for_its_store_for_a_limited_time(monkeypatch):
    hung = threading.Event()

    def client(uri):
        if uri == "broken":
            raise ConnectionError("no store")
        return SimpleNamespace(log_metric=lambda *values: hung.wait(5))

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=client))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        log_report("hangs", "run", {"a": 1.0}, [], timeout_s=0.1)
    assert time.monotonic() - began < 2
    hung.set()
    log_report("works", "run", {"a": 1.0}, [])
    with pytest.raises(ConnectionError, match="no store"):
        log_report("broken", "run", {}, [])


def test_passwords_are_not_shown():
    assert shown_uri("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert shown_uri("sqlite:////a/mlflow.db") == "sqlite:////a/mlflow.db"
