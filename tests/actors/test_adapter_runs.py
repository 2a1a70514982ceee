"""Whole runs with adapters, as exact as whole networks': `make slow`.

SiDA on EDM's digits over two workers: killed, resumed on another number of workers, computed again
in the backward pass, grown by a node, with one network of the two as an adapter.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import mlflow
import psutil
import pytest

from benchmarks.local_cluster import LocalCluster, Run
from benchmarks.recovery import difference
from sid_ray.checkpoint.manifest import EMA_FOLDER
from sid_ray.run_folder import EVALUATIONS
from sid_ray.weights.base import BASE
from tests.commands.test_distill import assert_same_checkpoint, last_checkpoint
from tests.support.checkpoints import newest_whole, read_manifest, verify
from tests.support.distill_runs import PATIENCE_S, finish, processes_end, start
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BATCH, EVERY, IMAGES = 64, 192, 768
ADAPTER = ["--adapter.rank", "4", "--training.generator-lr", "1e-3",
           "--training.fake-score-lr", "1e-3"]  # fmt: skip
# Other world sizes add floats in another order, which Adam amplifies; whole networks are held to
# the same (test_elastic.py, benchmarks/recovery.py).
TOLERANCE = 1e-3


def command(folder: Path, run: str, images: int, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "sid_ray.cli", "distill", "digits-sida", "--run", run,
        "--output.folder", str(folder), "--images", str(images), *ADAPTER,
        "--objective.generator-start", "0", "--objective.adversarial-start", "0",
        "--output.checkpoint-every", str(EVERY), "--output.report-every", "64",
        "--evaluation.every", "384", "--evaluation.num-images", "128",
        "--evaluation.no-final-report", "--resources.num-workers", "2", *more,
    ]  # fmt: skip


def done(*arguments: str) -> str:
    found = finish(list(arguments))
    assert found["code"] == 0, found["out"] + found["err"]
    return found["out"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def undisturbed(folder) -> Path:
    done(*command(folder, "undisturbed", IMAGES))
    return folder / "undisturbed"


def test_a_killed_run_goes_on_to_the_same_bits(folder, undisturbed):
    run = folder / "killed"
    arguments = command(folder, run.name, IMAGES)
    process = start(arguments)
    wait_for(lambda: newest_whole(run)[0], "its first checkpoint", PATIENCE_S)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    processes_end(process, children)
    seen = read_manifest(newest_whole(run)[0]).images_seen
    assert seen < IMAGES, "killed too late to show anything"
    assert "resumed at " in done(*arguments)
    assert verify(last_checkpoint(run)).images_seen == IMAGES
    assert_same_checkpoint(last_checkpoint(undisturbed), last_checkpoint(run))


def test_a_resume_on_one_worker_differs_by_rounding_alone(folder, undisturbed):
    done(*command(folder, "resized", 2 * EVERY))
    done(*command(folder, "resized", IMAGES, "--resources.num-workers", "1"))
    found = difference(folder / "resized", undisturbed, IMAGES)
    print(f"resumed on one worker: {found:.1e}")
    assert 0 < found < TOLERANCE


def test_computing_activations_again_changes_no_bit(folder, undisturbed):
    again = ("--resources.activation-checkpointing", "True")
    done(*command(folder, "recomputed", IMAGES, *again))
    assert_same_checkpoint(last_checkpoint(undisturbed), last_checkpoint(folder / "recomputed"))


def test_its_record_says_adapter_scores_and_losses(folder, undisturbed):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("sid_ray")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    run = runs["undisturbed"]
    assert run.info.status == "FINISHED"
    assert run.data.params["adapter.rank"] == "4"
    assert run.data.params["adapter.roles"] == "both"
    for metric in ("fake_loss", "generator_loss"):
        history = client.get_metric_history(run.info.run_id, metric)
        assert [point.step for point in history] == list(range(BATCH, IMAGES + 1, BATCH))
    scores = client.get_metric_history(run.info.run_id, "eval/FD-digits-cnn")
    assert [point.step for point in scores] == [0, 384, 768]
    assert scores[-1].value < scores[0].value, "what is scored is the adapter, not its base"


def test_scores_are_of_the_weights_that_checkpoints_hold(undisturbed):
    lines = (undisturbed / EVALUATIONS).read_text().splitlines()
    found = {line["images_seen"]: line["weights_sha256"] for line in map(json.loads, lines)}
    manifest = read_manifest(last_checkpoint(undisturbed))
    assert found[IMAGES] == manifest.files[f"{EMA_FOLDER}/model.safetensors"]


@pytest.mark.parametrize("role", ["fake", "generator"])
def test_one_network_alone_may_be_an_adapter(folder, role):
    one = ("--adapter.roles", role, "--evaluation.every", "0")
    for run, images in (("in one go", 2), ("in two", 1), ("in two", 2)):
        done(*command(folder, f"{role} {run}", images * EVERY, *one))
    whole, parts = (last_checkpoint(folder / f"{role} {run}") for run in ("in one go", "in two"))
    assert_same_checkpoint(whole, parts)
    rows = read_manifest(whole).fragments
    for name in ("fake_score", "generator"):
        names = {row[0] for table in rows[name].values() for row in table}
        is_adapter = all(".lora_" in row for row in names)
        assert is_adapter == (name.removesuffix("_score") == role)
    said = json.loads((whole / EMA_FOLDER / "model.json").read_text())
    assert bool(said.get("adapter")) == (role == "generator")
    assert said["notes"][BASE]
    pictures = folder / f"{role} pictures"
    done(
        sys.executable, "-m", "sid_ray.cli", "generate", str(whole), "--seeds", "0-1",
        "--out", str(pictures),
    )  # fmt: skip
    assert len(list(pictures.glob("seed*.png"))) == 2


def test_a_run_grows_with_the_nodes_and_loses_no_step(tmp_path, monkeypatch):
    images = 3840
    flags = [
        *ADAPTER, "--images", str(images), "--output.checkpoint-every", "640",
        "--output.report-every", "64", "--workers", "2", "--resources.resize-check-s", "1",
    ]  # fmt: skip
    for name, value in os.environ.items():  # what LocalCluster sets is gone after the test
        monkeypatch.setenv(name, value)
    with LocalCluster(tmp_path) as cluster:
        cluster.add()
        grown = Run(tmp_path, "grown", flags, cluster.address)
        grown.wait(lambda: grown.said("first step of 1 worker "))
        cluster.add()
        (stop,) = grown.finish()["interruptions"]
        quiet = Run(tmp_path, "quiet", flags, cluster.address)
        quiet.finish()
    assert (stop["workers_before"], stop["workers_after"], stop["steps_lost"]) == (1, 2, 0)
    found = difference(grown.folder, quiet.folder, images)
    print(f"grown from one worker to two: {found:.1e}")
    assert found < TOLERANCE
