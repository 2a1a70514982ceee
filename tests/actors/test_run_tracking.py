"""Real runs and their MLflow: a server that goes away under one, and two at once in one sqlite.

`make slow`. What a run told is what its workers and evaluator handed to the tracker, one line each
in tracking.jsonl, before MLflow was asked; and the scores are those of a run nobody disturbed.
"""

import json
import os
import subprocess
import sys
import time

import mlflow
import psutil
import pytest

from tests.support.distill_runs import PATIENCE_S, hear_ctrl_c
from tests.support.mlflow_server import mlflow_server
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
AWAY_S = float(os.environ.get("SID_RAY_TEST_AWAY_S", "60"))
IMAGES, REPORT_EVERY, SCORE_EVERY = 28_800, 128, 3_200
FIRST_IMAGES = 9_600  # of the undisturbed run; a run is a function of its images seen
UNSET = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")


class Run:
    """One `sid-ray distill digits-sid` in ``folder``, with its scores in the store ``uri``."""

    def __init__(self, folder, name, uri, images=IMAGES, score_every=SCORE_EVERY):
        arguments = [
            sys.executable, "-m", "sid_ray.cli", "distill", "digits-sid", "--run", name,
            "--output.folder", str(folder / "runs"), "--images", str(images), "--workers", "2",
            "--output.report-every", str(REPORT_EVERY), "--output.checkpoint-every", "6400",
            "--evaluation.every", str(score_every), "--evaluation.num-images", "256",
            "--evaluation.no-final-report", "--output.tracking-uri", uri,
        ]  # fmt: skip
        self.folder, self.uri = folder / "runs" / name, uri
        self.printed = folder / f"{name}.txt"
        environment = {k: v for k, v in os.environ.items() if k not in UNSET}
        with self.printed.open("w") as out:
            self.process = subprocess.Popen(
                arguments, stdout=out, stderr=subprocess.STDOUT, env=environment,
                cwd=folder, preexec_fn=hear_ctrl_c,
            )  # fmt: skip

    @property
    def output(self):
        return self.printed.read_text()

    def told(self):
        """{metric: [(images seen, value)]} in the order it was told, each step once."""
        found = {}
        path = self.folder / "tracking.jsonl"
        lines = path.read_text().split("\n")[1:-1] if path.exists() else []
        for _, kind, values in map(json.loads, lines):
            if kind == "metrics":
                for name, value in values["metrics"].items():
                    found.setdefault(name, {}).setdefault(values["step"], value)
        return {name: list(points.items()) for name, points in found.items()}

    def reported(self):
        return len(self.told().get("images_per_s", ()))

    def wait_for_reports(self, count):
        def there():
            assert self.process.poll() is None, self.output
            return self.reported() >= count

        wait_for(there, f"{count} reports", PATIENCE_S)

    def finish(self):
        assert self.process.wait(600) == 0, self.output


def in_mlflow(run):
    """{metric: [(images seen, value)]} in the order of MLflow's times, and the run's status."""
    client = mlflow.MlflowClient(run.uri)
    run_id = json.loads((run.folder / "run.json").read_text())["tracker_run_id"]
    found = client.get_run(run_id)
    points = {
        name: sorted(
            (p.timestamp, p.step, p.value) for p in client.get_metric_history(run_id, name)
        )
        for name in found.data.metrics
    }
    return {n: [(s, v) for _, s, v in values] for n, values in points.items()}, found.info.status


def scores(told):
    return {name: points for name, points in told.items() if name.startswith("eval/")}


def assert_all_there(run, images, score_every):
    told, (found, status) = run.told(), in_mlflow(run)
    assert status == "FINISHED"
    assert found == told
    steps = [step for step, _ in found["fake_loss"]]
    expected = [n for n in range(64, images + 1, 64) if n % REPORT_EVERY == 0 or n == images]
    assert steps == expected
    for points in scores(found).values():
        assert [step for step, _ in points] == [*range(0, images, score_every), images]
    assert scores(found) and any(name.startswith("best/") for name in found)
    assert all(value > 0 for _, value in found["memory_gib"])
    return found


@pytest.fixture
def started():
    runs = []
    yield runs
    for run in runs:
        if run.process.poll() is None:
            children = psutil.Process(run.process.pid).children(recursive=True)
            for process in (run.process, *children):
                process.kill()
            run.process.wait()


def test_a_run_whose_server_is_away_for_a_while_misses_nothing(tmp_path, started):
    """What it has is what it told, and as far as the undisturbed one went also what that told."""
    undisturbed = Run(tmp_path, "undisturbed", f"sqlite:///{tmp_path}/undisturbed.db", FIRST_IMAGES)
    started.append(undisturbed)
    undisturbed.finish()
    with mlflow_server(tmp_path) as server:
        run = Run(tmp_path, "disturbed", server.uri)
        started.append(run)
        run.wait_for_reports(10)
        server.kill()
        before, began = run.reported(), time.monotonic()
        wait_for(lambda: time.monotonic() - began >= AWAY_S, "the outage", PATIENCE_S)
        assert run.process.poll() is None, f"ended within the outage:\n{run.output}"
        meanwhile = run.told()["images_per_s"][before + 1 :]
        server.start()
        run.finish()
        found = assert_all_there(run, IMAGES, SCORE_EVERY)
        expected = assert_all_there(undisturbed, FIRST_IMAGES, SCORE_EVERY)
        for name in (*scores(expected), "fake_loss", "generator_loss"):
            assert found[name][: len(expected[name])] == expected[name]
    speeds = sorted(value for _, value in meanwhile)
    usual = sorted(value for _, value in expected["images_per_s"])
    print(run.output)
    print(
        f"{len(meanwhile)} of {len(found['images_per_s'])} reports within {AWAY_S:.0f} s without "
        f"a server, median {speeds[len(speeds) // 2]:.0f} images/s (slowest {speeds[0]:.0f}); "
        f"undisturbed {usual[len(usual) // 2]:.0f}; memory {expected['memory_gib'][-1][1]:.2f} GiB"
    )
    assert len(meanwhile) > 5 and speeds[0] > 0
    assert "MLflow does not answer at" in run.output and "MLflow is back after" in run.output


def test_two_runs_at_once_in_one_sqlite_are_both_complete(tmp_path, started):
    images, score_every = 3_200, 640
    uri = f"sqlite:///{tmp_path}/both.db"
    for name in ("one", "two"):
        started.append(Run(tmp_path, name, uri, images, score_every))
    for run in started:
        run.finish()
    one, two = (assert_all_there(run, images, score_every) for run in started)
    assert one["fake_loss"] == two["fake_loss"] and scores(one) == scores(two)
    for run in started:
        print(run.output)
