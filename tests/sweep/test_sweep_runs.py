"""Real sweeps on the digits: one to its end, one whose worker, trial and driver are killed, PBT.

`make slow`. What is held against what: the ledger against Ray's decisions made again, the runs'
own journals against the ledger, and the cluster's resources against what it had before.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.util import placement_group_table

from sid_ray.ray_environment import set_ray_environment
from sid_ray.run_folder import read_record
from sid_ray.store import Store
from sid_ray.stored import newest_listed
from sid_ray.sweep.arithmetic import Asha
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.results import read_about
from sid_ray.sweep.space_file import parse_space
from sid_ray.sweep.stop import running
from tests.distill_runs import hear_ctrl_c, wait_for
from tests.sweep.ledgers import events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SCORE = "FD-digits-cnn"
REPORT_EVERY = 64
ASHA = """\
recipe: digits-sida
metric: FD-digits-cnn
budget: {images: 1280, grace: 448, reduction: 3}
scheduler: asha
searcher: optuna
trials: 3
fields:
  objective.alpha: {uniform: [0.6, 1.4]}
  training.generator_lr: {loguniform: [2e-5, 5e-3]}
  objective.generator_start: 0
  evaluation.num_images: 128
"""
POINTS = (448, 1280)
PBT = """\
recipe: digits-sida
metric: FD-digits-cnn
budget: {images: 384, interval: 192}
scheduler: pbt
trials: 4
fields:
  training.generator_lr: {loguniform: [2e-5, 5e-3]}
  objective.generator_start: 0
  evaluation.num_images: 128
"""


class Sweep:
    """One `sid-ray sweep` in a folder, started as often as a test likes."""

    def __init__(self, folder, text, **environment):
        self.folder, self.runs = folder / "runs" / "s", folder / "runs"
        (folder / "s.yaml").write_text(text)
        self.space = parse_space(text, "s.yaml")
        self.printed = folder / "printed.txt"
        self.arguments = [
            sys.executable, "-m", "sid_ray.cli", "sweep", str(folder / "s.yaml"),
            "--output.folder", str(self.runs), "--output.report-every", str(REPORT_EVERY),
            "--output.checkpoint-every", "128", "--evaluation.every", "640",
        ]  # fmt: skip
        self.environment = {
            k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        } | environment
        self.process = None

    def start(self):
        with self.printed.open("a") as out:
            self.process = subprocess.Popen(
                self.arguments, stdout=out, stderr=subprocess.STDOUT,
                env=self.environment, preexec_fn=hear_ctrl_c,
            )  # fmt: skip
        return self

    @property
    def output(self):
        log = self.folder / "log.txt"
        return self.printed.read_text() + (log.read_text()[-3000:] if log.exists() else "")

    def finish(self, code=0):
        assert self.process.wait(1200) == code, self.output
        return Ledger(self.folder).trials()

    def trials(self):
        return Ledger(self.folder).trials()

    def seen(self, run):
        """Images of a run's newest checkpoint."""
        there = newest_listed(Store.at(self.runs / run))
        return there[1].images_seen if there else 0

    def wait_for(self, condition, what):
        def there():
            assert self.process.poll() is None, self.output
            return condition()

        return wait_for(there, what, 600)

    def in_the_middle(self, number):
        """Waits until a trial has a checkpoint in the middle of a segment; its run's name."""
        run = f"s-{number:03}"
        self.wait_for(lambda: self.seen(run) not in (0, *POINTS), f"a checkpoint of {run}")
        return run


@pytest.fixture
def started():
    """Sweeps of which nothing is left after a test."""
    found = []
    yield found
    for sweep in found:
        for pid in running(sweep.folder):
            os.kill(pid, signal.SIGKILL)
        if sweep.process and sweep.process.poll() is None:
            for process in psutil.Process(sweep.process.pid).children(recursive=True):
                process.kill()
            sweep.process.kill()
            sweep.process.wait()


def steps_of(run_folder):
    """Images seen of each report of a run, in the order in which they were told."""
    lines = (run_folder / "tracking.jsonl").read_text().split("\n")[1:-1]
    return [
        values["step"]
        for _, kind, values in map(json.loads, lines)
        if kind == "metrics" and "fake_loss" in values["metrics"]
    ]


def assert_accounted_for(sweep, trials):
    """Every trial has an end, its score is its run's, and its run never began anew."""
    assert set(trials) == {f"{number:03}" for number in range(sweep.space.trials)}
    assert read_about(sweep.folder)["state"] == "finished"
    for trial in trials.values():
        assert trial.state in ("finished", "stopped"), (trial.state, trial.why)
        for leg in trial.legs:
            steps = steps_of(sweep.runs / leg.run)
            first = leg.began_at + REPORT_EVERY
            assert steps[0] == first, f"{leg.run} began at {steps[0]}"
            assert steps.count(first) == 1, f"{leg.run} began anew"
            assert steps[-1] == leg.images_seen == sweep.seen(leg.run)
        for segment in trial.segments:
            told = (sweep.runs / segment.run / "evaluations.jsonl").read_text().splitlines()
            scores = {line["images_seen"]: line["scores"][SCORE] for line in map(json.loads, told)}
            assert segment.scores[SCORE] == scores[segment.images_seen]


def assert_decided_as_asha(sweep, trials):
    """The ledger's segments in their order, judged anew: the same trials were stopped."""
    asha = Asha(sweep.space.budget, sweep.space.metrics[0])
    decided = {}
    for event in events(sweep.folder):
        if event["event"] == "segment":
            name = event["trial"]
            assert decided.get(name) != "STOP", f"{name} went on after it was stopped"
            decided[name] = asha.decide(name, event["images_seen"], event["scores"][SCORE])
    for name, trial in trials.items():
        assert decided[name] == "STOP"
        assert trial.state == ("finished" if trial.images_seen >= POINTS[-1] else "stopped")


def test_a_sweep_on_a_cluster_gives_everything_back(tmp_path, started):
    """ASHA and Optuna to the end, on a Ray of the test's own, which looks at what is taken."""
    set_ray_environment()
    ray.init(num_cpus=2, include_dashboard=False, address="local", log_to_driver=False)
    try:
        address = ray.get_runtime_context().gcs_address
        sweep = Sweep(tmp_path, ASHA, RAY_ADDRESS=address)
        started.append(sweep.start())
        waits = []  # s from a trial's end until its CPUs were back
        for number in range(sweep.space.trials):
            name = f"{number:03}"

            def ended(name=name):
                trial = sweep.trials().get(name)
                return trial is not None and trial.state != "running"

            wait_for(ended, f"the end of {name}", 600)
            began = time.monotonic()
            wait_for(lambda: ray.available_resources().get("CPU") == 2, f"the CPUs of {name}", 20)
            waits.append(time.monotonic() - began)
        trials = sweep.finish()
        print("CPUs were back after", [round(wait, 2) for wait in waits], "s")
        wait_for(lambda: not placed(), "the end of placement groups", 20)
        assert ray.available_resources().get("CPU") == 2
    finally:
        ray.shutdown()
    assert_accounted_for(sweep, trials)
    assert_decided_as_asha(sweep, trials)
    spent = sum(trial.images_spent for trial in trials.values())
    print(sweep.printed.read_text())
    assert spent == sum(trial.images_seen for trial in trials.values())
    assert started[0].printed.read_text().count("images, FD-digits-cnn") >= 3


def placed():
    return [g for g in placement_group_table().values() if g["state"] != "REMOVED"]


def workers(below):
    """Processes of Ray Train's workers."""
    found = psutil.Process(below).children(recursive=True)
    return [process for process in found if "RayTrainWorker" in process.name()]


def test_kills_of_worker_trial_and_driver(tmp_path, started):
    sweep = Sweep(tmp_path, ASHA).start()
    started.append(sweep)

    run = sweep.in_the_middle(0)
    workers(sweep.process.pid)[0].kill()
    print(f"killed a worker of {run} at {sweep.seen(run)} images")

    run = sweep.in_the_middle(1)
    (pid,) = running(sweep.folder)
    before = sweep.seen(run)
    os.kill(pid, signal.SIGKILL)
    print(f"killed the driver of {run} at {before} images")
    sweep.wait_for(lambda: sweep.seen(run) > before, f"more of {run}")

    run = sweep.in_the_middle(2)
    before = sweep.seen(run)
    children = psutil.Process(sweep.process.pid).children(recursive=True)
    sweep.process.kill()
    sweep.process.wait()
    print(f"killed the sweep's driver, {run} at {before} images")
    began = time.monotonic()
    wait_for(lambda: not alive(children), "the end of its processes", 60)
    print(f"nothing of it was left after {time.monotonic() - began:.1f} s")
    assert read_about(sweep.folder)["state"] == "running"

    trials = sweep.start().finish()
    print(sweep.printed.read_text())
    assert sweep.seen(run) >= before
    assert_accounted_for(sweep, trials)
    assert_decided_as_asha(sweep, trials)


def alive(processes):
    """Workers and drivers among them; Ray's dashboard agent may stay for a minute, idle."""
    return [
        process
        for process in processes
        if process.is_running()
        and process.status() != psutil.STATUS_ZOMBIE
        and ("RayTrainWorker" in process.name() or "sid_ray" in " ".join(process.cmdline()))
    ]


def test_ctrl_c_and_the_same_command(tmp_path, started):
    """One trial; stopped in the middle of its first segment."""
    sweep = Sweep(tmp_path, ASHA.replace("trials: 3", "trials: 1")).start()
    started.append(sweep)
    run = sweep.in_the_middle(0)
    began = time.monotonic()
    sweep.process.send_signal(signal.SIGINT)
    sweep.finish(130)
    print(f"ended {time.monotonic() - began:.1f} s after Ctrl-C, at {sweep.seen(run)} images")
    assert "the same command goes on" in sweep.printed.read_text()
    assert read_about(sweep.folder)["state"] == "stopped"
    assert sweep.trials()["000"].state == "running"
    trials = sweep.start().finish()
    assert_accounted_for(sweep, trials)
    assert trials["000"].state == "finished"


def test_a_population_goes_on_from_its_best(tmp_path, started):
    sweep = Sweep(tmp_path, PBT).start()
    started.append(sweep)
    trials = sweep.finish()
    print(sweep.printed.read_text())
    assert_accounted_for(sweep, trials)
    taken = [trial for trial in trials.values() if len(trial.legs) > 1]
    assert len(taken) == 1
    leg = taken[0].legs[1]
    first = {name: trial.segments[0].scores[SCORE] for name, trial in trials.items()}
    assert taken[0].name == max(first, key=first.get)
    assert leg.from_run == f"s-{min(first, key=first.get)}"
    record = read_record(Store.at(sweep.runs / leg.run))
    donor = Path(record.began_from)
    assert donor.parent == sweep.runs / leg.from_run
    assert "000000000192" in donor.name
    assert "began at 192 images" in (sweep.runs / leg.run / "log.txt").read_text() + "".join(
        path.read_text() for path in sweep.folder.glob("*.log")
    )
