"""The whole command, on a Ray of its own: train, kill -9, the same command, Ctrl-C.

Short runs (distill_runs.py), exact assertions.
"""

import json
import signal
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file

from sid_ray.checkpoint.find import find_generator
from sid_ray.checkpoint.manifest import EMA_FOLDER
from sid_ray.cli import main
from sid_ray.run_folder import EVALUATIONS
from tests.support.checkpoints import newest_whole, read_manifest, verify
from tests.support.distill_runs import CHECKPOINT_EVERY, IMAGES

pytestmark = pytest.mark.timeout(600)  # alone, there is nothing beside which the runs were made


@pytest.fixture(scope="module")
def folder(distill_runs) -> Path:
    return distill_runs.folder


@pytest.fixture(scope="module")
def printed(distill_runs) -> dict:
    """What the commands of the undisturbed run printed."""
    return distill_runs.part("undisturbed")


@pytest.fixture(scope="module")
def undisturbed(folder, printed) -> Path:
    log = (folder / "undisturbed" / "log.txt").read_text()
    assert printed["code"] == 0, printed["out"] + printed["err"] + log[-3000:]
    assert printed["err"] == ""
    return folder / "undisturbed"


@pytest.fixture(scope="module")
def disturbed(folder, distill_runs) -> dict:
    return distill_runs.part("disturbed") | {"run": folder / "disturbed"}


def last_checkpoint(run: Path) -> Path:
    newest, damage = newest_whole(run)
    assert damage == []
    assert newest is not None
    return newest


def test_a_run_ends_with_a_whole_checkpoint_and_a_summary(undisturbed, printed):
    manifest = verify(last_checkpoint(undisturbed))
    assert manifest.images_seen == IMAGES
    assert manifest.optimizer_steps == {"fake_score": IMAGES // 64, "generator": IMAGES // 64}
    summary = printed["summary"]  # the command again has written its own
    assert summary["images_seen"] == summary["trained_images"] == IMAGES
    assert (summary["num_workers"], summary["zero_stage"]) == (2, 1)
    assert summary["checkpoint"] == last_checkpoint(undisturbed).name
    assert 0 < summary["train_seconds"] < summary["total_seconds"]


def test_ctrl_c_says_what_is_left(disturbed):
    stopped = disturbed["stopped"]
    assert stopped["code"] == 130
    assert stopped["err"] == ""
    assert "stopping (SIGHUP): the workers save first" in stopped["out"]
    assert "stopped; checkpoint at " in stopped["out"]
    assert "the same command goes on from there" in stopped["out"]


def test_the_same_command_goes_on_and_says_so(disturbed):
    assert disturbed["killed"]["code"] == -signal.SIGKILL
    assert "resumed at " not in disturbed["killed"]["out"]
    assert "resumed at " in disturbed["stopped"]["out"]
    assert "images from checkpoint_" in disturbed["stopped"]["out"]


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(undisturbed, disturbed):
    """At each checkpoint since the resume that the undisturbed run has reached."""
    attempt = last_checkpoint(disturbed["run"]).name.rpartition("_")[2]
    both = [
        (whole, resumed)
        for resumed in sorted(disturbed["run"].glob(f"checkpoint_*_{attempt}"))
        for whole in undisturbed.glob(f"{resumed.name.removesuffix(attempt)}*")
    ]
    assert both, "killed too late to show anything"
    for whole, resumed in both:
        assert verify(resumed).images_seen > CHECKPOINT_EVERY
        assert_same_checkpoint(whole, resumed)


def assert_same_checkpoint(whole: Path, resumed: Path) -> None:
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert len(files) == 5, "a part a role and worker, and the averaged generator"
    for file in files:
        expected, found = load_file(whole / file), load_file(resumed / file)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"{file}: {name}"
    assert read_manifest(resumed).optimizer_steps == read_manifest(whole).optimizer_steps


def test_both_parts_are_one_mlflow_run(folder, undisturbed, disturbed):
    run_id = disturbed["stopped"]["run_id"]
    assert disturbed["killed"]["run_id"] in (
        None,
        run_id,
    )  # killed before MLflow was open, or after
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("sid_ray")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"undisturbed", "disturbed"}
    assert runs["disturbed"].info.run_id == run_id
    assert runs["disturbed"].info.status == "KILLED"
    assert runs["undisturbed"].info.status == "FINISHED"
    assert runs["disturbed"].data.params["training.batch_size"] == "64"

    def history(name: str, metric: str) -> list[tuple[int, float]]:
        found = client.get_metric_history(runs[name].info.run_id, metric)
        return [(m.step, m.value) for m in found]

    for metric in ("fake_loss", "generator_loss"):
        # Nothing is missing, and nothing is there twice, though part of it was computed twice.
        found, whole = history("disturbed", metric), history("undisturbed", metric)
        last = min(found[-1][0], whole[-1][0])
        assert last > disturbed["killed"]["seen"], "killed too late to show anything"
        assert [point for point in found if point[0] <= last] == [
            point for point in whole if point[0] <= last
        ], metric
        assert [step for step, _ in found] == reports_until(found[-1][0])
    assert [step for step, _ in history("undisturbed", "eval/FD-digits-cnn")] == [0, 320, 640, 960]


def reports_until(last: int) -> list[int]:
    """Every 128 images and with each checkpoint."""
    return sorted(
        {*range(128, last + 1, 128), *range(CHECKPOINT_EVERY, last + 1, CHECKPOINT_EVERY)}
    )


def test_scores_name_the_weights_that_a_checkpoint_holds(undisturbed):
    lines = (undisturbed / EVALUATIONS).read_text().splitlines()
    found = {line["images_seen"]: line["weights_sha256"] for line in map(json.loads, lines)}
    assert sorted(found) == [0, 320, 640, 960]
    shared = 0
    for path in undisturbed.glob("checkpoint_*"):
        manifest = read_manifest(path)
        if manifest.images_seen in found:
            shared += 1
            sha256 = manifest.files[f"{EMA_FOLDER}/model.safetensors"]
            assert found[manifest.images_seen] == sha256
    assert shared
    assert find_generator(f"{undisturbed}/best").parent == undisturbed


def test_runs_are_compared_on_one_page(folder, undisturbed, disturbed, capsys):
    moved = folder.rename(folder.with_name(f"{folder.name}-moved"))
    try:
        names = [str(moved / "undisturbed"), str(moved / "disturbed")]
        with pytest.raises(SystemExit) as ended:
            main(["compare", *names, "--seeds", "0-3", "--out", str(moved / "compare.html")])
        assert ended.value.code == 0
        text = (moved / "compare.html").read_text()
    finally:
        moved.rename(folder)
    assert text.count('src="data:image/png;base64,') == 8
    assert text.count("<svg") == 5


def test_a_finished_run_is_not_trained_again(undisturbed, printed):
    again, there = printed["again"], last_checkpoint(undisturbed)
    assert again["code"] == 0
    assert f"already complete: {there.name}" in again["out"]
    assert len(list(undisturbed.glob("checkpoint_*"))) == IMAGES // CHECKPOINT_EVERY


def test_another_config_under_the_same_name_is_refused(undisturbed, printed):
    changed = printed["changed"]
    assert changed["code"] == 2
    assert changed["out"] == ""
    assert "objective.alpha: 1.0 -> 1.2; training.seed: 0 -> 7" in changed["err"]
    assert changed["err"].count("\n") == 1


def test_the_log_holds_what_the_terminal_was_spared(undisturbed):
    assert "RayTrainWorker" in (undisturbed / "log.txt").read_text()
