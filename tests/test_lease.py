"""One driver a run in S3, whatever machine it is on, and a dead one is no obstacle for long."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from sid_ray import lease as module
from sid_ray.errors import UserError
from sid_ray.lease import LEASE, only_lease, read_lease
from sid_ray.run_folder import LOG, RunFolder, only_driver
from sid_ray.store import Store
from sid_ray.store_errors import UnreachableStoreError


@pytest.fixture
def run(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SETTLE_S", 0.0)
    return RunFolder(Store.at(f"{bucket}/runs/x"), tmp_path)


def held(store, host, pid, age_s):
    values = {"host": host, "pid": pid, "token": "t", "since": 0, "beat": time.time() - age_s}
    store.write(LEASE, json.dumps(values))


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    return gone.pid


def test_a_living_driver_is_named_and_refused(run):
    for host, pid in (("elsewhere", 7), (socket.gethostname(), os.getppid())):
        held(run.store, host, pid, age_s=10)
        with pytest.raises(UserError, match=f"process {pid} on {host}.*10 s ago.*wait 50 s"):
            only_driver(run).__enter__()


def test_a_dead_driver_is_taken_over(run):
    for host, pid, age_s in (
        ("elsewhere", 7, 61),
        (socket.gethostname(), dead_pid(), 1),
        (socket.gethostname(), os.getpid(), 1),  # the first process of a container started again
    ):
        held(run.store, host, pid, age_s)
        with only_driver(run):
            assert read_lease(run.store)["pid"] == os.getpid()
        assert run.store.size(LEASE) is None, "given back"


def test_a_damaged_lease_is_none(run):
    for text in ("{", "[]", "{}"):
        run.store.write(LEASE, text)
        with only_driver(run):
            pass


def test_it_is_kept_alive_and_storage_that_goes_away_stops_nothing(run, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    (run.local / LOG).write_text("a line")
    real, failures = Store.write, [2]

    def write(self, name, data):
        if failures[0] and name == LEASE and self.size(LEASE) is not None:
            failures[0] -= 1
            raise UnreachableStoreError("no answer")
        real(self, name, data)

    with only_driver(run):
        first = read_lease(run.store)["beat"]
        monkeypatch.setattr(Store, "write", write)
        until = time.monotonic() + 10
        while read_lease(run.store)["beat"] == first or run.store.size(LOG) is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        (run.local / LOG).write_text("a line and another")
    assert failures == [0]
    assert run.store.read_text(LOG) == "a line and another", "the log is uploaded at the end"


def test_a_lease_that_another_has_taken_is_left_alone(run, monkeypatch, capfd):
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    with only_driver(run):
        held(run.store, "elsewhere", 7, 0)
        time.sleep(0.3)
    assert read_lease(run.store)["host"] == "elsewhere"
    assert "another driver works on this run now" in capfd.readouterr().err


def test_of_two_that_start_at_once_one_goes_on(run, monkeypatch):
    """The other's lease is written between this one's look and its check."""
    monkeypatch.setattr(module.time, "sleep", lambda s: held(run.store, "elsewhere", 7, 0))
    with pytest.raises(UserError, match="process 7 on elsewhere"):
        only_lease(run.store).__enter__()
