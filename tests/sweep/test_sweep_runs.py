"""Real sweeps on the digits: one to its end, one whose worker, trial and driver are killed, PBT.

`make slow`. What is held against what: the ledger against Ray's decisions made again, the runs'
own journals against the ledger, and the cluster's resources against what it had before.
"""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import ray

from sid_ray.ray_setup.environment import set_ray_environment
from sid_ray.run_folder import read_record
from sid_ray.sweep.results import read_about
from sid_ray.sweep.stop import running
from tests.support.distill_runs import wait_for
from tests.sweep.real import (
    ASHA,
    PBT,
    SCORE,
    Sweep,
    alive,
    assert_accounted_for,
    assert_decided_as_asha,
    placed,
    started,
    steps_of,
    workers,
)  # fmt: skip

__all__ = ["started"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


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


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_the_same_command(tmp_path, started, sent):
    """One trial, stopped in the middle of its first segment: Ctrl-C, or `ray job stop`."""
    sweep = Sweep(tmp_path, ASHA.replace("trials: 3", "trials: 1")).start()
    started.append(sweep)
    run = sweep.in_the_middle(0)
    began = time.monotonic()
    sweep.process.send_signal(sent)
    sweep.finish(130)
    print(f"ended {time.monotonic() - began:.1f} s after {sent.name}, at {sweep.seen(run)} images")
    assert "the same command goes on" in sweep.printed.read_text()
    assert read_about(sweep.folder)["state"] == "stopped"
    assert sweep.trials()["000"].state == "running"
    trials = sweep.start().finish()
    assert_accounted_for(sweep, trials)
    assert trials["000"].state == "finished"
    steps = steps_of(sweep.local(run))
    assert steps == sorted(set(steps)), "what was trained before Ctrl-C was trained again"


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
    record = read_record(sweep.runs / leg.run)
    donor = Path(record.began_from)
    assert donor.parent == sweep.local(leg.from_run)
    assert "000000000192" in donor.name
    assert "began at 192 images" in (sweep.local(leg.run) / "log.txt").read_text() + "".join(
        path.read_text() for path in sweep.folder.glob("*.log")
    )
