"""`ray job submit` of the entry script on a real Ray head: to the end, stopped, killed, resumed.

`make slow`. A tiny EDM2 teacher and the digits that ship; every run is a job that Ray's own command
sends, from a copy of this repository that Ray's own packaging makes. The environment of the head,
and so of every process, holds made-up secrets; the last test looks for them in all that was left.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import torch
from safetensors.torch import load_file

from sid_ray.checkpoint.find import newest_listed
from sid_ray.storage.store import Store
from sid_ray.weights.folder import ModelDescription, save_model
from tests.support.canaries import canary, leaks, leaks_below, planted
from tests.support.checkpoints import newest_whole, read_manifest, verify
from tests.support.mlflow_server import mlflow_server
from tests.support.networks import TINY_EDM2, tiny_edm2
from tests.support.ray_head import RAY, ray_head
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]
IMAGES, EVERY = 4096, 256
STOP_WAIT_S = 60
PATIENCE_S = 400
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Place:
    """A head, a teacher, a folder of runs, and the repository as a person has it."""

    def __init__(self, head, canaries, folder):
        self.head, self.canaries, self.folder = head, canaries, folder
        self.runs = folder / "runs"
        self.teacher = folder / "teacher"
        description = ModelDescription("edm2", TINY_EDM2.to_json())
        save_model(self.teacher, tiny_edm2().state_dict(), description)
        self.cmdlines = set()

    def flags(self, run, *more):
        return [
            "--run", run, "--output.folder", str(self.runs), "--images", str(IMAGES),
            "--teacher.source", str(self.teacher), "--data.name", "digits",
            "--training.batch-size", "32", "--training.group-size", "16",
            "--training.precision", "float32", "--workers", "2", "--resources.no-use-gpu",
            "--resources.micro-batch", "16", "--objective.generator-start", "64",
            "--objective.adversarial-start", "128", "--output.checkpoint-every", str(EVERY),
            "--output.report-every", "256", "--output.keep-checkpoints", "20", *more,
        ]  # fmt: skip

    def ray_job(self, *arguments):
        """Ray's own command; (exit code, output)."""
        command = [RAY, "job", arguments[0], "--address", self.head.url, *arguments[1:]]
        deadline = time.monotonic() + PATIENCE_S
        with tempfile.TemporaryFile("w+") as printed:
            process = subprocess.Popen(
                command, env=self.head.environment, cwd=REPOSITORY, stdout=printed,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            while process.poll() is None and time.monotonic() < deadline:
                self.note_processes()
                time.sleep(1)
            process.kill()
            printed.seek(0)
            return process.wait(), printed.read()

    def submit(self, *command, wait=True):
        """(exit code, job, output) of `ray job submit --working-dir . -- python ...`."""
        options = [] if wait else ["--no-wait"]
        code, output = self.ray_job(
            "submit", *options, "--working-dir", ".", "--", "python", *command
        )
        return code, re.search(r"raysubmit_\w+", output)[0], output

    def distil(self, run, *more, wait=True):
        return self.submit("sida_edm2.py", "img512-xs-sida", *self.flags(run, *more), wait=wait)

    def job(self, job):
        return self.head.get(f"/api/jobs/{job}").json()

    def log(self, job):
        return self.head.get(f"/api/jobs/{job}/logs").json()["logs"]

    def ended(self, job):
        """The job's status, when it has one that stays."""
        wait_for(
            lambda: self.job(job)["status"] not in ("PENDING", "RUNNING"), "its end", PATIENCE_S
        )
        return self.job(job)["status"]

    def driver(self):
        """The one process that runs the entry script itself."""
        for process in psutil.Process(self.head.process.pid).children(recursive=True):
            line = process.cmdline()
            if "sida_edm2.py" in line[1:2]:
                return process
        raise AssertionError("no driver")

    def note_processes(self):
        for process in psutil.Process(self.head.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.cmdlines.add(" ".join(process.cmdline()))

    def checkpoint(self, run):
        """Images seen and attempt of the newest whole checkpoint."""
        found = newest_listed(Store.at(self.runs / run))
        return (found[1].images_seen, found[0].rpartition("_")[2]) if found else (0, "")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    canaries = planted()
    (folder / "mlflow").mkdir()
    with mlflow_server(folder / "mlflow") as server:
        password = canary("")
        host = server.uri.removeprefix("http://")
        settings = canaries | {
            "MLFLOW_TRACKING_URI": f"http://person:{quote(password, safe='')}@{host}",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            # Jobs see what they were sent, and nothing of this checkout.
            "PYTHONPATH": "",
        }
        canaries = canaries | {"MLFLOW_TRACKING_URI": password}
        with ray_head(settings) as head:
            found = Place(head, canaries, folder)
            yield found


@pytest.fixture(scope="module")
def undisturbed(place):
    """One job to its end, with evaluations, a report and MLflow on a server."""
    began = time.monotonic()
    scored = (
        "--evaluation.feature-space", "digits-cnn", "--evaluation.every", "2048",
        "--evaluation.num-images", "128", "--evaluation.final-report",
    )  # fmt: skip
    code, job, output = place.distil("undisturbed", *scored)
    print(f"{time.monotonic() - began:.0f} s\n{output}")
    return {"code": code, "job": job, "output": output, "run": place.runs / "undisturbed"}


def weights(run):
    newest, damage = newest_whole(run)
    assert damage == []
    return {
        f"{path.relative_to(newest)} {name}": value
        for path in sorted(newest.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def test_a_job_runs_to_its_end_and_its_output_can_be_read(place, undisturbed):
    assert undisturbed["code"] == 0, undisturbed["output"]
    assert place.job(undisturbed["job"])["status"] == "SUCCEEDED"
    assert json.loads((undisturbed["run"] / "summary.json").read_text())["images_seen"] == IMAGES
    assert verify(newest_whole(undisturbed["run"])[0]).images_seen == IMAGES
    own = place.log(undisturbed["job"]).partition("Running entrypoint")[2].splitlines()[1:]
    print("\n".join(own))
    assert not any(CONTROL.search(line) for line in own), "it is a file, not a terminal"
    assert any(line.startswith("training: ") for line in own)
    assert len(own) < 60, "few lines for a run of half a minute"


def test_the_job_ran_from_what_was_uploaded(place, undisturbed):
    copies = place.head.logs / "runtime_resources" / "working_dir_files"
    for copy in (path for path in copies.iterdir() if path.is_dir()):
        assert (copy / "sid_ray" / "assets" / "digits-teacher" / "model.safetensors").is_file()
        assert not (copy / "tests").exists()
    code, _, output = place.submit("-c", "import sid_ray; print(sid_ray.__file__)")
    assert code == 0
    assert re.search(rf"{copies.resolve()}/_ray_pkg_\w+/sid_ray/__init__.py", output), output


def test_a_stopped_and_a_killed_job_go_on_to_the_same_bits(place, undisturbed):
    """Stopped: nothing is lost. Killed: no more than since its last checkpoint."""
    run = place.runs / "disturbed"
    uri = f"sqlite:///{place.folder}/own.db"

    def start():
        return place.distil("disturbed", "--output.tracking-uri", uri, wait=False)[1]

    job = start()
    wait_for(lambda: place.checkpoint("disturbed")[0], "a checkpoint", PATIENCE_S)
    began = time.monotonic()
    code, output = place.ray_job("stop", job)
    stopped_s = time.monotonic() - began
    assert code == 0, output
    assert place.ended(job) == "STOPPED"
    log = place.log(job)
    print(f"stopped within {stopped_s:.1f} s\n{log}")
    at, attempt = place.checkpoint("disturbed")
    assert at < IMAGES, "stopped too late to show anything"
    assert "stopping: the workers save first" in log
    assert f"stopped; checkpoint at {at:,} images kept" in log
    told = max(int(seen.replace(",", "")) for seen in re.findall(r"training: ([\d,]+)/", log))
    assert at >= told, "what was trained is in the checkpoint"

    job = start()
    wait_for(lambda: place.checkpoint("disturbed")[1] != attempt, "its checkpoint", PATIENCE_S)
    place.driver().kill()
    assert place.ended(job) == "FAILED"
    log = place.log(job)
    print(f"killed\n{log}")
    assert f"resumed at {at:,} images" in log, "no image is trained twice after a stop"
    killed_at = place.checkpoint("disturbed")[0]
    assert at < killed_at < IMAGES, "killed too late to show anything"

    job = start()
    assert place.ended(job) == "SUCCEEDED", place.log(job)
    log = place.log(job)
    print(f"went on\n{log}")
    resumed = int(re.search(r"resumed at ([\d,]+) images", log)[1].replace(",", ""))
    assert killed_at <= resumed <= killed_at + EVERY, "from the newest checkpoint"
    assert resumed % EVERY == 0
    expected, found = weights(undisturbed["run"]), weights(run)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    newest = read_manifest(newest_whole(run)[0])
    assert newest.optimizer_steps["fake_score"] == IMAGES // 32, "no step is there twice"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sida_edm2.py", "img512-xs-sidda"], "sid-ray: no recipe 'img512-xs-sidda'. Did you mean"),
        (["sida_edm2.py", "img512-xs-sida", "--seed", "x"], "training.seed"),
        (["sid_edm.py", "digits-sid"], "sid-ray: output.folder 'runs' is in this job's working"),
    ],
)
def test_wrong_input_is_one_line_and_a_failed_job(place, command, said):
    code, job, output = place.submit(*command)
    assert code == 1, "Ray's own command fails with its job"
    assert place.job(job)["driver_exit_code"] == 2
    own = place.log(job).partition("Running entrypoint")[2].splitlines()[1:]
    assert len(own) == 1, own
    assert said in own[0]
    assert "Traceback" not in output


def submitted(place, *flags, **environment):
    """`sid-ray submit` from this repository."""
    command = [sys.executable, "-m", "sid_ray.cli", "submit", *flags]
    done = subprocess.run(
        command, env=place.head.environment | environment, cwd=REPOSITORY, text=True,
        timeout=PATIENCE_S, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done


def test_sid_ray_submit_sends_the_same_and_ends_with_its_code(place, undisturbed):
    flags = place.flags("undisturbed")
    done = submitted(place, "img512-xs-sida", "--address", place.head.url, *flags)
    assert done.returncode == 0, done.stderr
    assert "already complete: checkpoint_" in done.stdout
    line = next(line for line in done.stdout.splitlines() if line.startswith("ray job submit"))
    assert line.startswith(f"ray job submit --address {place.head.url} --working-dir . ")
    job = re.search(r"raysubmit_\w+", done.stdout)[0]
    assert place.job(job)["entrypoint"] == line.split(" -- ")[1]
    missing = submitted(
        place, "img512-xs-sida", *flags, "--teacher.source", "/nowhere",
        RAY_API_SERVER_ADDRESS=place.head.url,
    )  # fmt: skip
    assert missing.returncode == 1
    assert "sid-ray: no network at /nowhere" in missing.stdout
    assert "FAILED, exit code 2" in missing.stdout


def test_sid_ray_submit_without_the_token_is_one_line(place):
    done = submitted(
        place, "img512-xs-sida", "--address", place.head.url, *place.flags("x"),
        RAY_AUTH_TOKEN="another",
    )  # fmt: skip
    assert done.returncode == 2
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_secret_of_the_environment_is_left_anywhere(place, undisturbed):
    """Runs, MLflow's database and artifacts, Ray's session, the Jobs API, process lists.

    Stands last: it looks at all that the others have left.
    """
    for folder in (place.runs, place.folder / "mlflow", place.head.folder):
        looked = list(leaks_below(folder, place.canaries))
        print(f"{len(looked)} files below {folder}")
        assert len(looked) > 10
        assert [found for found in looked if found[1]] == []
    jobs = place.head.get("/api/jobs/").json()
    assert jobs
    answers = [json.dumps(jobs)]
    answers += [place.log(job["submission_id"]) for job in jobs]
    for path in (
        "/nodes?view=summary", "/api/v0/actors?detail=1", "/api/v0/tasks?detail=1",
        "/api/v0/workers?detail=1", "/api/v0/runtime_envs",
    ):  # fmt: skip
        answer = place.head.get(path)
        assert answer.ok, f"{path}: {answer.text}"
        answers.append(answer.text)
    assert all(leaks(answer.encode(), place.canaries) == [] for answer in answers)
    assert any("RayTrainWorker" in line for line in place.cmdlines)
    assert leaks("\n".join(place.cmdlines).encode(), place.canaries) == []
