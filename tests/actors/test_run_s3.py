"""A run whose data, teacher, checkpoints and artifacts are in S3, which then goes away.

`make slow`. SiDA, which reads real images all the time, on the digits as a prepared set.

The real command on a Ray of its own, two workers, against a real server that is killed under it.
"""

import json
import os
import signal
import subprocess
import sys
import time

import mlflow
import psutil
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.local_cluster import LocalCluster
from sid_ray.checkpoint.find import newest_listed
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.run_folder import default_tracking_uri
from sid_ray.storage.store import Store
from sid_ray.weights.sources import ASSETS
from tests.support.distill_runs import PATIENCE_S, hear_ctrl_c
from tests.support.s3_server import s3_server
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
IMAGES, EVERY = 3840, 640
UNSET = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_PROFILE", "AWS_SESSION_TOKEN")


class Place:
    """A server, and a folder to run commands in; ``cache`` is a machine's disk."""

    def __init__(self, server, folder):
        self.server, self.folder, self.started = server, folder, []
        self.images, self.entry = IMAGES, ("-m", "sid_ray.cli")
        self.on_machine("one")
        self.bucket = server.make_bucket("sid-ray")
        for name in ("model.json", "model.safetensors"):
            source = ASSETS / "digits-teacher" / name
            (Store.at(self.bucket) / "teacher").put(source, name)
        self.data = f"{self.bucket}/digits"
        prepare_data(PrepareOptions("digits", self.data))
        self.runs = f"{self.bucket}/runs"

    def on_machine(self, name):
        """Commands run in another folder, with another cache."""
        self.cwd = self.folder / name
        self.cwd.mkdir(exist_ok=True)
        self.cache = self.cwd / "cache"

    def run(self, name):
        return Store.at(f"{self.runs}/{name}")

    def start(self, name, *more, **environment):
        self.started.append(Command(self, name, more, environment))
        return self.started[-1]


class Command:
    """One `sid-ray distill`, followed by what it prints."""

    def __init__(self, place, name, more, environment):
        arguments = [
            sys.executable, *place.entry, "distill", "digits-sida", "--run", name,
            "--data.name", "prepared", "--data.source", place.data,
            "--output.folder", place.runs, "--teacher.source", f"{place.bucket}/teacher",
            "--images", str(place.images), "--workers", "2",
            "--output.checkpoint-every", str(EVERY),
            "--output.report-every", "64", "--evaluation.every", "0",
            "--evaluation.num-images", "128", *more,
        ]  # fmt: skip
        clean = {k: v for k, v in os.environ.items() if k not in UNSET}
        clean |= place.server.environment | {"SID_RAY_CACHE": str(place.cache)} | environment
        self.printed = place.folder / f"{name}-{time.monotonic_ns()}.txt"
        self.began = time.monotonic()
        with self.printed.open("w") as out:
            self.process = subprocess.Popen(
                arguments, stdout=out, stderr=subprocess.STDOUT, env=clean, cwd=place.cwd,
                preexec_fn=hear_ctrl_c,
            )  # fmt: skip

    @property
    def output(self):
        return self.printed.read_text()

    def wait_until_said(self, text):
        wait_for(lambda: text in self.output or self.process.poll() is not None, text, PATIENCE_S)
        assert text in self.output, self.output

    def finish(self):
        code = self.process.wait(400)
        self.seconds = time.monotonic() - self.began
        return code

    def workers(self):
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if "RayTrainWorker" in child.name()]

    def kill(self):
        """kill -9 of the driver and of all that it has started."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        for child in children:
            child.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3runs")
    with s3_server(folder / "server") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield Place(server, folder)


@pytest.fixture(autouse=True)
def no_test_leaves_a_mess_to_the_next(place):
    yield
    for run in place.started:
        if run.process.poll() is None:
            run.kill()
    place.started.clear()
    if place.server.process is None:
        place.server.start()


@pytest.fixture(scope="module")
def undisturbed(place):
    run = place.start("undisturbed")
    assert run.finish() == 0, run.output
    return run


def past(run, store, images_seen):
    """Waits until a checkpoint of so many images is whole in S3, and a few steps more were made."""

    def there():
        assert run.process.poll() is None, run.output
        found = newest_listed(store)
        return found is not None and found[1].images_seen >= images_seen

    wait_for(there, f"a checkpoint at {images_seen}", PATIENCE_S)
    time.sleep(0.5)


def assert_same_bits(place, name, other, tmp_path):
    """Every tensor of both last checkpoints."""
    runs = [place.run(name), place.run(other)]
    found = [newest_listed(run) for run in runs]
    assert [manifest.images_seen for _, manifest in found] == [place.images] * 2
    assert found[0][1].files.keys() == found[1][1].files.keys()
    assert found[0][1].optimizer_steps == found[1][1].optimizer_steps
    for file in found[0][1].files:
        if file.endswith(".safetensors"):
            ours, theirs = (
                load_file(run.fetch(f"{checkpoint}/{file}", tmp_path / run.name / file))
                for run, (checkpoint, _) in zip(runs, found, strict=True)
            )
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours), file


def test_everything_of_a_run_is_in_s3(place, undisturbed):
    run = place.run("undisturbed")
    files = run.files()
    assert {"run.json", "log.txt", "summary.json", "grid.png"} <= files.keys()
    assert json.loads(run.read_text("driver_000001.json"))["ended"]
    assert len([name for name in files if name.endswith("manifest.json")]) == 2
    summary = json.loads(run.read_text("summary.json"))
    assert summary["checkpoint"] == newest_listed(run)[0]
    assert f"generate {run} --seeds" in " ".join(undisturbed.output.split())
    assert f"--output.folder {place.runs}" in undisturbed.output
    for secret in ("devsecret", "devkey"):
        stored = [run.read(name) for name in ("run.json", "log.txt", "summary.json")]
        assert not any(secret.encode() in text for text in stored)
        assert secret not in undisturbed.output


def test_the_report_is_among_mlflows_artifacts_in_s3(place, undisturbed, monkeypatch):
    monkeypatch.chdir(place.folder / "one")
    client = mlflow.MlflowClient(default_tracking_uri(place.runs))
    run_id = json.loads(place.run("undisturbed").read_text("run.json"))["tracker_run_id"]
    run = client.get_run(run_id)
    assert run.info.artifact_uri == f"{place.runs}/mlartifacts/{run_id}/artifacts"
    assert run.info.status == "FINISHED"
    names = (Store.at(place.runs) / "mlartifacts" / run_id / "artifacts").files()
    leaves = ("README.md", "model.json", "model.safetensors")
    generator = {f"generator/{IMAGES:012d}/{leaf}" for leaf in leaves}
    assert names.keys() == {"grid.png", "summary.json"} | generator
    assert not any("devsecret" in value for value in run.data.params.values())


def test_another_set_is_not_gone_on_with(place, undisturbed):
    other = f"{place.bucket}/others"
    prepare_data(PrepareOptions("digits", other, seed=1, max_images=900))
    again = place.start("undisturbed", "--data.source", other)
    assert again.finish() == 2
    assert "the data set is not the one that this run began with" in again.output


def test_a_generator_of_s3_makes_pictures(place, undisturbed):
    environment = os.environ | place.server.environment | {"SID_RAY_CACHE": str(place.cache)}
    arguments = ["generate", str(place.run("undisturbed")), "--seeds", "0-3", "--out", "samples"]
    done = subprocess.run(
        [sys.executable, "-m", "sid_ray.cli", *arguments],
        env=environment, cwd=place.cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (place.cwd / "samples" / "seed000003.png").is_file()


def test_a_finished_run_is_not_trained_again(place, undisturbed):
    again = place.start("undisturbed", "--evaluation.no-final-report")
    assert again.finish() == 0
    assert "already complete: checkpoint_" in again.output


def test_a_killed_run_goes_on_from_s3_on_another_machine(place, undisturbed, tmp_path):
    first = place.start("killed")
    past(first, place.run("killed"), 2 * EVERY)
    first.kill()
    assert place.run("killed").size("driver_000001.json") is not None
    place.on_machine("two")
    second = place.start("killed")
    assert second.finish() == 0, second.output
    assert "is not in sqlite:" in second.output and "is sent to a new one" in second.output
    assert "resumed at 1," in second.output or "resumed at 2," in second.output
    assert_same_bits(place, "killed", "undisturbed", tmp_path)
    print(second.output)


@pytest.mark.parametrize(
    ("name", "more", "said", "away_s"),
    [
        ("outage", ("--output.keep-checkpoints", "20"), "storage cannot be written", 10),
        # With memory for a few row groups only, they are read again and again.
        (
            "waiting",
            ("--resources.data-cache-gib", "0.00002"),
            "/digits/part-00000.parquet, row group",
            5,
        ),
    ],
)
def test_a_server_that_goes_away_costs_nothing(
    place, undisturbed, tmp_path, name, more, said, away_s
):
    run = place.start(name, *more)
    past(run, place.run(name), EVERY)
    place.server.kill()
    run.wait_until_said(said)
    time.sleep(away_s)
    place.server.start()
    assert run.finish() == 0, run.output
    assert "storage is back after" in run.output
    assert json.loads(place.run(name).read_text("summary.json"))["interruptions"] == []
    assert_same_bits(place, name, "undisturbed", tmp_path)
    print(run.output)


def test_a_worker_dies_while_the_server_is_away(place, undisturbed, tmp_path):
    run = place.start("both")
    past(run, place.run("both"), EVERY)
    place.server.kill()
    run.wait_until_said("storage cannot be written")
    run.workers()[-1].kill()
    run.wait_until_said("storage cannot be read")
    place.server.start()
    assert run.finish() == 0, run.output
    (stop,) = json.loads(place.run("both").read_text("summary.json"))["interruptions"]
    assert stop["workers_after"] == 2
    assert_same_bits(place, "both", "undisturbed", tmp_path)
    print(run.output)


@pytest.mark.parametrize(
    ("environment", "more", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, (), "access denied"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, (), "no answer at http://127.0.0.1:9"),
        ({}, ("--storage.endpoint-url", "http://127.0.0.1:9"), "no answer at http://127.0.0.1:9"),
        ({}, ("--output.folder", "s3://none-such/runs"), "bucket none-such does not exist"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(place, environment, more, words):
    run = place.start("wrong", *more, **environment)
    assert run.finish() == 2
    assert run.output.count("\n") == 1 and words in run.output, run.output
    assert run.seconds < 20
    print(f"{run.seconds:.1f} s: {run.output}")


def test_a_node_is_lost_with_its_disk_while_the_server_is_away(place, undisturbed, tmp_path):
    """No whole checkpoint is left on local disks: the new group waits for S3.

    Two joined nodes with temporary folders of their own; Ray's storage is a path of the driver's.
    """
    with LocalCluster(tmp_path) as cluster:
        nodes = [cluster.add(), cluster.add()]
        run = place.start(
            "joined", "--evaluation.no-final-report", "--resources.min-workers", "2",
            RAY_ADDRESS=cluster.address,
        )  # fmt: skip
        past(run, place.run("joined"), EVERY)
        place.server.kill()
        cluster.kill(nodes[1])
        cluster.add()
        run.wait_until_said("no whole checkpoint on local disks: waiting for storage")
        time.sleep(5)
        place.server.start()
        assert run.finish() == 0, run.output
    assert "storage is back after" in run.output
    assert "resumed at " in run.output
    assert_same_bits(place, "joined", "undisturbed", tmp_path)
    print(run.output)
