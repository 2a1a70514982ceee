"""The Python door with a real run: what is the caller's stays, and Ctrl-C loses nothing."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from sid_ray.checkpoint.find import newest_listed
from sid_ray.run_folder import read_record
from sid_ray.storage.store import Store
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow  # two Rays at once; test_api.py asks the same of a stand-in driver
PATIENCE_S = 280
KEPT = (
    "signal handlers", "blocked signals", "environment", "file descriptors", "warnings",
    "matplotlib", "mlflow", "logging", "ray", "folder", "import path", "threads of torch",
    "random numbers", "random numbers of numpy", "random numbers of torch", "streams",
)  # fmt: skip


def caller(folder, run, images, *more):
    """A process that calls sid_ray.distill, without RAY_ADDRESS."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.door_caller", str(folder), run, str(images), *more],
        env=environment | {"RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def called(folder, run, images, *more):
    """What it found, with what it printed."""
    process = caller(folder, run, images, *more)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    return json.loads((folder / "caller.json").read_text()) | {"out": out, "err": err}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("door")
    return called(folder, "scored", 128) | {"folder": folder}


@pytest.mark.parametrize("what", KEPT)
def test_what_is_the_callers_stays_as_it_is(scored, what):
    assert scored["after"][what] == scored["before"][what]


def test_all_that_was_looked_at_is_named(scored):
    assert set(scored["before"]) == set(KEPT)
    assert "mine.db" in scored["before"]["mlflow"] and "svg" in scored["before"]["matplotlib"]


def test_a_run_prints_nothing_of_its_own(scored):
    """Two lines on stderr are of the caller's own Ray."""
    assert scored["out"] == ""
    assert not [line for line in scored["err"].splitlines() if "ray" not in line.lower()]
    assert scored["lines"][0].startswith("digits-sid: sid on 1 worker,")
    assert scored["lines"][-1].startswith("MLflow UI")


def test_the_result_is_what_the_run_left(scored):
    run = Store.at(scored["folder"] / "scored")
    assert scored["seen"] == newest_listed(run)[1].images_seen == 128
    assert scored["summary"] == json.loads(run.read_text("summary.json"))
    ((name, value),) = scored["scores"].items()
    assert name == "FD-digits-cnn"
    assert value == pytest.approx(scored["summary"]["generator"], abs=1e-4)
    assert scored["weights"] == str(run.folder / "model")
    assert scored["mlflow"][1] == read_record(run).tracker_run_id
    assert scored["mlflow"][0].endswith("/mine.db"), "the caller's own store"


def test_the_generator_samples(scored):
    shape, dtype, values = scored["pictures"]
    assert (shape, dtype) == ([3, 1, 8, 8], "torch.uint8")
    assert values > 20
    assert scored["same"], "a seed's image is the same in any call"


@pytest.mark.timeout(900)
def test_ctrl_c_and_a_killed_caller_leave_a_run_that_goes_on(tmp_path):
    """Checkpoints are only written when the workers are asked to save."""
    run = Store.at(tmp_path / "kept")
    stopped = called(tmp_path, "kept", 10**6, "interrupt")
    assert stopped["ended"] == "interrupted"
    assert "stopping: the workers save first" in stopped["lines"]
    assert stopped["after"] == stopped["before"]
    first = newest_listed(run)[1].images_seen
    assert f"checkpoint at {first:,} images kept" in stopped["lines"][-1]

    def told():
        """Images at the newest numbers that MLflow is told."""
        text = (run.folder / "tracking.jsonl").read_text()
        return max(map(int, re.findall(r'"step": (\d+)', text)))

    assert told() <= first
    process = caller(tmp_path, "kept", 10**6)
    try:
        wait_for(lambda: told() > first, "the second start", PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    wait_for(lambda: newest_listed(run)[1].images_seen > first, "its checkpoint", PATIENCE_S)
