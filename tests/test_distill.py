"""The whole command, on a Ray of its own: train, kill -9, the same command, Ctrl-C.

Two Ray Train workers with DeepSpeed ZeRO-2 each time. Short runs, exact assertions.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
from safetensors.torch import load_file

from sid_ray.checkpoint import newest_whole, read_manifest, verify
from sid_ray.cli import main

IMAGES, CHECKPOINT_EVERY = 1920, 320
PATIENCE_S = 280


def command(folder: Path, run: str, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "sid_ray.cli", "distill", "digits-sid",
        "--run", run, "--output.folder", str(folder), "--images", str(IMAGES),
        "--output.checkpoint-every", str(CHECKPOINT_EVERY), "--output.report-every", "128",
        "--evaluation.every", "960", "--evaluation.num-images", "128",
        "--evaluation.no-final-report", "--output.keep-checkpoints", "20", *more,
    ]  # fmt: skip


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """A process that was started in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(arguments: list[str]) -> tuple[int, str, str]:
    process = start(arguments)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_for(condition, what: str):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what} did not happen within {PATIENCE_S} s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(folder) -> Path:
    code, out, err = finish(command(folder, "undisturbed"))
    assert code == 0, out + err + (folder / "undisturbed" / "log.txt").read_text()[-3000:]
    assert err == ""
    return folder / "undisturbed"


def processes_end(process: subprocess.Popen, children: list[psutil.Process]) -> tuple[str, str]:
    """Waits until none of the run's workers is left; returns what the driver printed.

    Ray's own dashboard agent may stay for a minute after a kill -9; it does nothing.
    """
    workers = [child for child in children if "RayTrainWorker" in child.name()]
    assert workers, [child.name() for child in children]
    output = process.communicate(timeout=PATIENCE_S)
    wait_for(
        lambda: not any(w.is_running() and w.status() != "zombie" for w in workers),
        "the end of the workers",
    )
    return output


@pytest.fixture(scope="module")
def disturbed(folder) -> dict:
    """kill -9 after a checkpoint, the same command, Ctrl-C after another checkpoint."""
    run, found = folder / "disturbed", {"run": folder / "disturbed"}
    for how, number in (("killed", signal.SIGKILL), ("stopped", signal.SIGINT)):
        before = newest_whole(run)[0]
        process = start(command(folder, "disturbed"))
        wait_for(lambda old=before: newest_whole(run)[0] != old, "the next checkpoint")
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        out, err = processes_end(process, children)
        seen = read_manifest(newest_whole(run)[0]).images_seen
        assert seen < IMAGES, "too late to show anything"
        run_id = json.loads((run / "run.json").read_text())["tracker_run_id"]
        found[how] = {"out": out, "err": err, "code": process.returncode, "run_id": run_id}
        found[how]["seen"] = seen
    return found


def last_checkpoint(run: Path) -> Path:
    newest, damage = newest_whole(run)
    assert damage == []
    assert newest is not None
    return newest


def test_a_run_ends_with_a_whole_checkpoint_and_a_summary(undisturbed):
    manifest = verify(last_checkpoint(undisturbed))
    assert manifest.images_seen == IMAGES
    assert manifest.optimizer_steps == {"fake_score": IMAGES // 64, "generator": IMAGES // 64}
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["images_seen"] == summary["trained_images"] == IMAGES
    assert (summary["num_workers"], summary["zero_stage"]) == (2, 2)
    assert Path(summary["checkpoint"]) == last_checkpoint(undisturbed)
    assert 0 < summary["train_seconds"] < summary["total_seconds"]


def test_ctrl_c_says_what_is_left(disturbed):
    stopped = disturbed["stopped"]
    assert stopped["code"] == 130
    assert stopped["err"] == ""
    assert "stopped; checkpoint at " in stopped["out"]
    assert "the same command goes on from there" in stopped["out"]


def test_the_same_command_goes_on_and_says_so(disturbed):
    assert disturbed["killed"]["code"] == -signal.SIGKILL
    assert "resumed at " not in disturbed["killed"]["out"]
    assert "resumed at " in disturbed["stopped"]["out"]
    assert "images from checkpoint_" in disturbed["stopped"]["out"]


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(undisturbed, disturbed):
    resumed = last_checkpoint(disturbed["run"])
    images_seen = read_manifest(resumed).images_seen
    (whole,) = undisturbed.glob(f"checkpoint_{images_seen:012d}_*")
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert len(files) == 5, "a part a role and worker, and the averaged generator"
    for file in files:
        expected, found = load_file(whole / file), load_file(resumed / file)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"{file}: {name}"
    assert read_manifest(resumed).optimizer_steps == read_manifest(whole).optimizer_steps


def test_both_parts_are_one_mlflow_run(folder, undisturbed, disturbed):
    assert disturbed["killed"]["run_id"] == disturbed["stopped"]["run_id"]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("sid_ray")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"undisturbed", "disturbed"}
    assert runs["disturbed"].info.run_id == disturbed["killed"]["run_id"]
    assert runs["disturbed"].info.status == "KILLED"
    assert runs["undisturbed"].info.status == "FINISHED"
    assert runs["disturbed"].data.params["training.batch_size"] == "64"

    def history(name: str, metric: str) -> list[tuple[int, float]]:
        found = client.get_metric_history(runs[name].info.run_id, metric)
        return [(m.step, m.value) for m in found]

    for metric in ("fake_loss", "generator_loss"):
        # Nothing is missing, and nothing is there twice, though part of it was computed twice.
        found, whole = history("disturbed", metric), history("undisturbed", metric)
        assert len(found) > 4
        assert found == [point for point in whole if point[0] <= found[-1][0]], metric
    assert [step for step, _ in history("undisturbed", "frechet_distance")] == [0, 960, 1920]


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


def test_a_finished_run_is_not_trained_again(undisturbed, folder):
    before = last_checkpoint(undisturbed)
    code, out, _ = finish(command(folder, "undisturbed"))
    assert code == 0
    assert f"already complete: {before.name}" in out
    assert last_checkpoint(undisturbed) == before


def test_another_config_under_the_same_name_is_refused(undisturbed, folder):
    code, out, err = finish(command(folder, "undisturbed", "--alpha", "1.2", "--seed", "7"))
    assert code == 2
    assert out == ""
    assert "objective.alpha: 1.0 -> 1.2; training.seed: 0 -> 7" in err
    assert err.count("\n") == 1


def test_the_log_holds_what_the_terminal_was_spared(undisturbed):
    assert "RayTrainWorker" in (undisturbed / "log.txt").read_text()
