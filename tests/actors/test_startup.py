"""What a start does not load, and that the phases of one add up."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import ray
import torch
from ray._private.node import Node
from sklearn.datasets import load_digits as load_with_scikit_learn

from benchmarks.startup import CHECKS, RAY_IMPORTS, TOTAL, Processes, phases_of, table
from sid_ray.actors import own_ray
from sid_ray.data.digits import load_digits
from sid_ray.distributed.deepspeed_private import hidden

LINES = [
    (2.5, "digits-sid: sid on 2 workers, ZeRO-2; full log: runs/startup/log.txt"),
    (3.0, "starting Ray"),
    (9.0, "starting"),
    (12.6, "first step of 2 workers after 9.5 s (start Ray 3.0, reserve 2.0, start processes 4.5)"),
]


def loaded_by(code: str) -> set[str]:
    """The modules of a fresh process after some code."""
    code = f"import sys; {code}; print('\\n' + ' '.join(m for m in sys.modules if sys.modules[m]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_phases_add_up_to_the_seconds_from_the_command():
    phases = phases_of(LINES)
    assert phases[TOTAL] == pytest.approx(3.0 + 9.5)
    assert phases[CHECKS] == 2.5
    assert phases[RAY_IMPORTS] == pytest.approx(0.5)
    assert sum(phases.values()) == pytest.approx(2 * phases[TOTAL])
    with pytest.raises(ValueError, match="no first step: digits-sid"):
        phases_of(LINES[:2])


def test_two_checkouts_are_compared_by_their_medians():
    ours, theirs = [{"a": 1.0}, {"a": 9.0}, {"a": 2.0}], [{"a": 4.0, "b": 3.0}]
    assert table(ours, theirs)[2:] == ["| a | 4.0 | 2.0 | 0.50 |", "| b | 3.0 | 0.0 | 0.00 |"]
    assert table(ours, [])[2:] == ["| a | 2.0 |"]


def test_cpu_seconds_are_those_of_all_that_a_process_starts():
    burn = "import time; e = time.process_time() + 0.3\nwhile time.process_time() < e: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    run = subprocess.Popen([sys.executable, "-c", code])
    processes = Processes(run.pid)
    while run.poll() is None:
        processes.look()
    assert len(processes.known) == 2
    assert 0.2 < processes.total < 2


def test_the_driver_loads_neither_mlflow_nor_deepspeed_nor_scikit_learn(tmp_path):
    loaded = loaded_by(
        "from sid_ray.commands.distill import *; config = recipe('digits-sid')\n"
        f"enforce(Patient(config, {str(tmp_path)!r}), DISTILL)\n"
        "import sid_ray.actors.trainer"
    )
    assert "ray.train" in loaded
    heavy = {"mlflow", "deepspeed", "sklearn", "scipy.stats", "torch._inductor", "huggingface_hub"}
    assert not loaded & heavy


@pytest.mark.parametrize("module", ["evaluator", "tracker"])
def test_actors_that_start_beside_the_workers_load_no_torch(module):
    loaded = loaded_by(f"import sid_ray.actors.{module}")
    assert "ray" in loaded
    assert not loaded & {"torch", "ray.train", "mlflow", "pandas", "pyarrow"}


def test_a_worker_gets_deepspeed_without_mlflow_and_inductor():
    loaded = loaded_by(
        "from sid_ray.distributed.deepspeed_private import import_deepspeed; import_deepspeed()\n"
        "from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam\n"
        "from deepspeed.runtime import compiler; import torch\n"
        "assert compiler.compile() is torch.compile, 'put back'"
    )
    assert "deepspeed" in loaded
    assert not loaded & {"mlflow", "torch._inductor.compile_fx"}


def test_a_hidden_module_is_there_again(tmp_path, monkeypatch):
    (tmp_path / "seldom_loaded.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with hidden("seldom_loaded"), pytest.raises(ImportError):
        importlib.import_module("seldom_loaded")
    module = importlib.import_module("seldom_loaded")
    with hidden("seldom_loaded"):  # what is loaded already stays
        assert importlib.import_module("seldom_loaded") is module
    del sys.modules["seldom_loaded"]


def test_a_ray_of_ones_own_is_started_without_services_of_clusters(monkeypatch):
    services = ("start_api_server", "start_monitor")
    methods = [getattr(Node, name) for name in services]
    seen = {}

    def init(**options):
        seen.update(options, starts=os.environ[own_ray.STARTS])
        node = Node.__new__(Node)
        node.start_monitor()
        node.start_api_server(include_dashboard=False, raise_on_failure=False)

    monkeypatch.setattr(own_ray.ray, "init", init)
    own_ray.start_own_ray(3)
    assert (seen["address"], seen["starts"]) == ("local", str(3 + own_ray.SPARE_STARTS))
    assert [getattr(Node, name) for name in services] == methods
    assert own_ray.STARTS not in os.environ
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    with own_ray.without_needless_services():
        assert [getattr(Node, name) for name in services] == methods


def test_digits_are_those_of_scikit_learn():
    images, labels = load_digits()
    theirs = load_with_scikit_learn()
    assert torch.equal(images, torch.from_numpy(theirs.images).float()[:, None] / 8 - 1)
    assert torch.equal(labels, torch.from_numpy(theirs.target).long())
