"""A real sweep on the digits, started and stopped by a test, and what must hold of its end."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from ray.util import placement_group_table

from sid_ray.checkpoint.find import newest_listed
from sid_ray.storage.store import Store
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.results import read_about
from sid_ray.sweep.space_file import parse_space
from sid_ray.sweep.stop import running
from tests.support.distill_runs import hear_ctrl_c, wait_for
from tests.support.sweeps import Asha
from tests.sweep.ledgers import events

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
    """One `sid-ray sweep` in a folder, started as often as a test likes.

    Args:
        runs: where the trials' runs are; beside the sweep's own folder.
    """

    def __init__(self, folder, text, *flags, runs=None, **environment):
        self.folder, self.runs = folder / "runs" / "s", Store.at(runs or folder / "runs")
        self.cache = folder / "cache"
        (folder / "s.yaml").write_text(text)
        self.space = parse_space(text, "s.yaml")
        self.printed = folder / "printed.txt"
        self.arguments = [
            sys.executable, "-m", "sid_ray.cli", "sweep", str(folder / "s.yaml"),
            "--output.folder", str(self.runs), "--output.report-every", str(REPORT_EVERY),
            "--output.checkpoint-every", "128", "--evaluation.every", "640", *flags,
        ]  # fmt: skip
        self.environment = (
            {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
            | {"SID_RAY_CACHE": str(self.cache)}
            | environment
        )
        self.process = None

    def start(self):
        with self.printed.open("a") as out:
            self.process = subprocess.Popen(
                self.arguments, stdout=out, stderr=subprocess.STDOUT,
                env=self.environment, preexec_fn=hear_ctrl_c, cwd=self.folder.parent.parent,
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
        there = newest_listed(self.runs / run)
        return there[1].images_seen if there else 0

    def local(self, run):
        """A run's folder on this machine."""
        if self.runs.is_local:
            return (self.runs / run).folder
        (found,) = self.cache.glob(f"runs/*/{run}")
        return found

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
            steps = steps_of(sweep.local(leg.run))
            first = leg.began_at + REPORT_EVERY
            assert steps[0] == first, f"{leg.run} began at {steps[0]}"
            assert steps.count(first) == 1, f"{leg.run} began anew"
            assert steps[-1] == leg.images_seen == sweep.seen(leg.run)
        for segment in trial.segments:
            told = (sweep.local(segment.run) / "evaluations.jsonl").read_text().splitlines()
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


def placed():
    return [g for g in placement_group_table().values() if g["state"] != "REMOVED"]


def workers(below):
    """Processes of Ray Train's workers."""
    found = psutil.Process(below).children(recursive=True)
    return [process for process in found if "RayTrainWorker" in process.name()]


def alive(processes):
    """Workers and drivers among them; Ray's dashboard agent may stay for a minute, idle."""
    return [
        process
        for process in processes
        if process.is_running()
        and process.status() != psutil.STATUS_ZOMBIE
        and ("RayTrainWorker" in process.name() or "sid_ray" in " ".join(process.cmdline()))
    ]
