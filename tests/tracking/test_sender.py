"""Records reach MLflow all, once and in order, whatever happens on the way."""

import dataclasses
import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sid_ray.commands.distill import track_report
from sid_ray.config.distill_config import replace
from sid_ray.evaluation.final_report import FinalReport, SamplerRow
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import GRID, SUMMARY, RunFolder, RunRecord, read_record, write_record
from sid_ray.tracking import sender
from sid_ray.tracking.mlflow_run import (
    MlflowRun,
    RefusedRecordError,
    Target,
    error_line,
    only_opener,
    shown_uri,
)
from sid_ray.tracking.sender import Tracking, send_report
from tests.support.tracking import MadeUpRun, target
from tests.support.waiting import wait_for


def history(where: Target, run_id: str, metric: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient(where.uri).get_metric_history(run_id, metric)
    return [(point.step, point.value) for point in found]


def runs(where: Target) -> list:
    client = mlflow.MlflowClient(where.uri)
    return client.search_runs([client.get_experiment_by_name("tests").experiment_id])


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(sender, "pause_s", lambda tries: 0.01)


@pytest.mark.parametrize("writes_first", [False, True])
def test_a_store_that_fails_for_a_while_gets_all_in_order(tmp_path, hurried, writes_first):
    run, told = MadeUpRun(failures=7, writes_first=writes_first), []
    kept = Tracking(target(tmp_path), tmp_path, told.append, run)
    for step in range(300):
        kept.metrics({"loss": step / 7, "other": -step}, step)
        if step in (100, 200):
            run.failures += 5
    kept.status("FINISHED")
    assert kept.finish() == ""
    expected = [point for step in range(300) for point in (("loss", step), ("other", step))]
    assert list(run.told) == expected
    assert run.told["loss", 299] == 299 / 7
    assert run.others == [("status", {"status": "FINISHED"})]
    assert [line.split(" ")[2] for line in told] == ["not", "back"] * (len(told) // 2)
    assert "nobody answers" in told[0]


def test_a_store_that_hangs_holds_up_nobody(tmp_path):
    answers, run = threading.Event(), MadeUpRun()
    run.open = lambda: answers.wait(30)
    kept = Tracking(target(tmp_path), tmp_path, run=run)
    for step in range(300):
        kept.metrics({"loss": float(step)}, step)
    assert kept.finish(0.2).startswith("300 records are not in MLflow (not written within 0 s)")
    answers.set()
    again = Tracking(target(tmp_path), tmp_path, run=MadeUpRun())
    assert again.finish() == ""
    assert list(again._run.told) == [("loss", step) for step in range(300)]


def test_one_failure_is_not_worth_a_line(tmp_path, hurried):
    told: list[str] = []
    kept = Tracking(target(tmp_path), tmp_path, told.append, MadeUpRun(failures=1))
    kept.metrics({"loss": 1.0}, 1)
    assert kept.finish() == ""
    assert told == []


def test_what_is_left_is_said_and_sent_by_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "AWAY_PATIENCE_S", 1.0)
    kept = Tracking(target(tmp_path), tmp_path, run=MadeUpRun(failures=10**6))
    for step in range(3):
        kept.metrics({"loss": float(step)}, step)
    kept.status("FINISHED")
    began = time.monotonic()
    left = kept.finish()
    assert time.monotonic() - began < sender.TIMEOUT_S / 2
    assert left == (
        "4 records are not in MLflow (nobody answers), they are kept in "
        f"{tmp_path}: the same command sends them"
    )
    run_id, left = send_report(target(tmp_path), tmp_path, {}, [], 3)
    assert left == ""
    assert history(target(tmp_path), run_id, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [run.info.status for run in runs(target(tmp_path))] == ["FINISHED"]


def test_nothing_left_and_no_report_asks_nobody(tmp_path):
    assert send_report(target(tmp_path, uri="http://127.0.0.1:1"), tmp_path, {}, [], 0) == ("", "")


def test_a_report_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "AWAY_PATIENCE_S", 1.0)
    (tmp_path / "summary.json").write_text("{}")
    files, away = [tmp_path / "summary.json"], target(tmp_path, uri="http://127.0.0.1:1")
    _, left = send_report(away, tmp_path, {"fd": 2.0}, files, 64)
    assert left.startswith("2 records are not in MLflow ([Errno 111] Connection refused), they")
    run_id, left = send_report(target(tmp_path), tmp_path, {}, [], 64)
    assert left == ""
    assert history(target(tmp_path), run_id, "fd") == [(64, 2.0)]
    artifacts = mlflow.MlflowClient(target(tmp_path).uri).list_artifacts(run_id)
    assert [item.path for item in artifacts] == ["summary.json"]


def test_with_a_full_disk_numbers_go_to_mlflow_from_memory(tmp_path, monkeypatch, hurried):
    def full(file, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    run, told = MadeUpRun(failures=1), []
    kept = Tracking(target(tmp_path), tmp_path, told.append, run)
    kept.metrics({"loss": 0.0}, 0)
    monkeypatch.setattr(os, "pwrite", full)
    for step in range(1, 50):
        kept.metrics({"loss": float(step)}, step)
    assert kept.finish() == ""
    assert list(run.told) == [("loss", step) for step in range(50)]
    assert len(told) == 1
    assert "No space left on device" in told[0]


@pytest.mark.parametrize("reported", [False, True])
def test_a_complete_run_that_is_started_again_sends_what_was_left(tmp_path, monkeypatch, reported):
    monkeypatch.setattr(sender, "AWAY_PATIENCE_S", 0.1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = replace(recipe("digits-sid"), output__folder=str(tmp_path), output__run="run")
    run, record = RunFolder.of(config), RunRecord(config.to_json())
    run.check()
    write_record(run.store, record)
    kept = Tracking(target(tmp_path, key=record.key), run.local, run=MadeUpRun(failures=10**6))
    kept.metrics({"loss": 1.0}, 64)
    assert kept.finish().startswith("1 records are not in MLflow")
    report = FinalReport()
    if reported:
        report = FinalReport([SamplerRow("made", 1, {"FD-x": 2.0}, 1.0)] * 3, "FD-x")
        for name in (GRID, SUMMARY):
            (run.local / name).write_text("")
    told = io.StringIO()
    track_report(Console(file=told), config, run, report, 64, None)
    assert told.getvalue() == ""
    run_id = read_record(run.store).tracker_run_id
    assert history(target(tmp_path), run_id, "loss") == [(64, 1.0)]
    expected = [(64, 2.0)] if reported else []
    assert history(target(tmp_path), run_id, "final/generator_FD-x") == expected
    artifacts = mlflow.MlflowClient(target(tmp_path).uri).list_artifacts(run_id)
    assert [item.path for item in artifacts] == ([GRID, SUMMARY] if reported else [])


def test_a_resumed_run_adds_only_what_is_new(tmp_path):
    for start in (0, 5):  # the second one begins before the first one ended
        kept = Tracking(target(tmp_path), tmp_path)
        kept.status("RUNNING")
        for step in range(start, start + 10):
            kept.metrics({"loss": 10.0 * (start > 0) + step}, step)
        assert kept.finish() == ""
    (run,) = runs(target(tmp_path))
    assert (run.info.status, run.data.params) == ("RUNNING", {"a": "1"})
    found = history(target(tmp_path), run.info.run_id, "loss")
    assert found == [(step, step + 10.0 * (step > 9)) for step in range(15)]


def test_a_run_is_found_again_by_its_key(tmp_path):
    ids = []
    for number in range(2):
        folder = tmp_path / str(number)  # another machine: no journal, and run.json has no id
        kept = Tracking(target(tmp_path), folder)
        kept.metrics({"loss": 1.0}, number)
        assert kept.finish() == ""
        ids.append(kept.run_id)
    assert ids[0] == ids[1]
    assert history(target(tmp_path), ids[0], "loss") == [(0, 1.0), (1, 1.0)]


def test_a_store_without_the_run_gets_all_that_was_ever_told(tmp_path):
    first, told = Tracking(target(tmp_path), tmp_path), []
    first.metrics({"loss": 1.0}, 1)
    assert first.finish() == ""
    (tmp_path / "other").mkdir()
    other = target(tmp_path / "other")
    kept = Tracking(other, tmp_path, told.append)
    kept.metrics({"loss": 2.0}, 2)
    assert kept.finish() == ""
    assert kept.run_id != first.run_id
    assert history(other, kept.run_id, "loss") == [(1, 1.0), (2, 2.0)]
    assert told == [f"MLflow run {first.run_id} is not in {other.uri}: all is sent to a new one"]


def test_a_record_that_is_refused_does_not_hold_up_the_others(tmp_path):
    told: list[str] = []
    kept = Tracking(target(tmp_path), tmp_path, told.append)
    kept.metrics({"loss": 1.0}, 1)
    kept.metrics({"bad?name": 1.0}, 2)
    kept.file(tmp_path / "gone.png")
    kept.metrics({"loss": float("nan")}, 3)
    assert kept.finish() == ""
    (first, last) = history(target(tmp_path), kept.run_id, "loss")
    assert (first, last[0]) == ((1, 1.0), 3)
    assert np.isnan(last[1])
    assert [line.split(" is not in MLflow")[0] for line in told] == [
        "warning: record 2 (metrics)",
        "warning: record 3 (file)",
    ]


def test_an_image_that_is_sent_twice_is_there_once(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "sheet.png")
    kept = Tracking(target(tmp_path), tmp_path)
    kept.image("samples", tmp_path / "sheet.png", 640)
    record = kept._pending[0]
    assert kept.finish() == ""
    run = MlflowRun(target(tmp_path), tmp_path, print)
    run.open()
    run.write([record])
    client = mlflow.MlflowClient(target(tmp_path).uri)
    names = [item.path for item in client.list_artifacts(kept.run_id, "images")]
    assert len(names) == 2
    assert all(name.startswith("images/samples+step+640+timestamp+") for name in names)
    assert runs(target(tmp_path))[0].data.tags["mlflow.loggedImages"] == "True"


def test_a_file_that_is_gone_is_refused(tmp_path):
    with pytest.raises(RefusedRecordError, match=r"gone.png is not there any more"):
        MlflowRun(target(tmp_path), tmp_path, print)._existing("gone.png")


WRITER = """
import sys, time
from pathlib import Path
from sid_ray.tracking.sender import Tracking
from tests.support.tracking import target
folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
kept = Tracking(target(folder, key=name, uri=sys.argv[4], name=name), folder / name, print)
for step in range(count):
    kept.metrics({"loss": step / 8, "other": -step}, step)
    print(step, flush=True)
    time.sleep(0.002)
kept.status("FINISHED")
print("left:", kept.finish(), flush=True)
"""


def writer(folder, name: str, count: int, uri: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), name, str(count), uri]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_and_another_one_in_the_same_store(tmp_path):
    """kill -9 in the middle of one, and the next start goes on; the other one never notices."""
    where = target(tmp_path)
    one, two = (writer(tmp_path, name, 250, where.uri) for name in ("one", "two"))
    while int(one.stdout.readline()) < 80:
        pass
    one.send_signal(signal.SIGKILL)
    one.communicate()
    again = writer(tmp_path, "one", 250, where.uri)  # from the start: repeats what was told
    for process in (again, two):
        assert process.communicate(timeout=50)[0].splitlines()[-1] == "left: "
    found = {run.info.run_name: run.info for run in runs(where)}
    assert len(found) == len(runs(where)) == 2
    for name in ("one", "two"):
        assert found[name].status == "FINISHED"
        for metric, factor in (("loss", 1 / 8), ("other", -1)):
            told = history(where, found[name].run_id, metric)
            assert told == [(step, step * factor) for step in range(250)]


def test_a_new_sqlite_is_opened_by_one_process_at_a_time(tmp_path, monkeypatch):
    """MLflow makes its tables then, and two at once stumble over each other's."""
    uri = f"sqlite:///{tmp_path}/new.db"
    one = only_opener(uri)
    one.__enter__()
    monkeypatch.setattr("sid_ray.tracking.mlflow_run.LOCK_S", 0.1)
    with pytest.raises(OSError, match="another process has had it"), only_opener(uri):
        pass
    with only_opener("http://127.0.0.1:1"):
        pass
    one.__exit__(None, None, None)
    with only_opener(uri):
        pass


def test_passwords_are_not_shown():
    assert shown_uri("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert shown_uri("sqlite:////a/mlflow.db") == "sqlite:////a/mlflow.db"
    assert error_line(OSError("no answer from http://me:secret@host\nmore")) == (
        "no answer from http://host"
    )


@pytest.mark.parametrize("scored", [True, False])
def test_a_runs_first_numbers_wait_for_a_score_to_stand_before_them(tmp_path, scored):
    """MLflow's compare view offers the metric that came first."""
    kept = Tracking(target(tmp_path), tmp_path, hold_s=30.0 if scored else 1.0)
    kept.metrics({"fake_loss": 1.0, "a_loss": 2.0}, 64)
    time.sleep(0.3)
    assert kept.left == 1
    if scored:
        kept.scores({"FD-x": 3.0}, 64)
    wait_for(lambda: not kept.left, "the numbers in MLflow")
    client = mlflow.MlflowClient(target(tmp_path).uri)
    told = list(client.get_run(kept.run_id).data.metrics)
    scores = ["best/FD-x", "eval/FD-x"] if scored else []
    assert sorted(told) == sorted(["a_loss", "fake_loss", *scores])
    assert told[0] == (scores or ["a_loss"])[0]
    assert kept.finish() == ""


def test_nothing_is_sent_before_it_is_woken_or_finished(tmp_path):
    for wake in (True, False):
        opened = threading.Event()
        run = SimpleNamespace(open=opened.set, write=lambda batch: None, run_id="x", best={})
        sender = Tracking(target(tmp_path), tmp_path / str(wake), run=run, rest_s=60)
        sender.status("RUNNING")
        assert not opened.wait(0.2)
        if wake:
            sender.wake()
            assert opened.wait(10)
        assert sender.finish() == ""
        assert opened.is_set()


def test_nothing_is_told_when_the_drivers_lease_is_over(tmp_path, hurried):
    """Also where the driver cannot say so any more: frozen, or about to be killed."""
    run = MadeUpRun()
    kept = Tracking(target(tmp_path), tmp_path, run=run)
    kept.allow(60.0)
    kept.metrics({"loss": 1.0}, 1)
    wait_for(lambda: run.told, "the first value")
    kept.allow(0.0)
    kept.metrics({"loss": 2.0}, 2)
    time.sleep(0.3)
    assert list(run.told) == [("loss", 1)]
    kept.allow(60.0)
    assert kept.finish() == ""
    assert list(run.told) == [("loss", 1), ("loss", 2)]


def test_a_run_that_a_newer_driver_tells_is_left_to_it(tmp_path):
    first, second = (dataclasses.replace(target(tmp_path), lease=number) for number in (1, 2))
    opened = MlflowRun(first, tmp_path, print)
    opened.open()
    again = dataclasses.replace(second, run_id=opened.run_id)
    MlflowRun(again, tmp_path, print).open()
    with pytest.raises(RefusedRecordError, match=r"a newer driver tells MLflow run .* \(lease 2\)"):
        MlflowRun(first, tmp_path, print).open()
