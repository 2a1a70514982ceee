"""A run that an earlier version left is read, and resumed where its dropout masks are today's.

tests/reference/run_before_the_map holds it, small, and says how it was made.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sid_ray.checkpoint.find import find_generator
from sid_ray.cli import main
from sid_ray.commands.compare import find_run, write_comparison
from sid_ray.denoisers.dropout import MASKS
from sid_ray.evaluation.records import results_in
from sid_ray.run_folder import EVALUATIONS
from tests.conftest import REFERENCE, relative_error
from tests.support.checkpoints import newest_whole, verify

EARLIER = REFERENCE / "run_before_the_map"
NEWEST = "checkpoint_000000000352_000001-fd74e0"
IMAGES = 448  # to which the earlier code went on
PATIENCE_S = 280


def copied_to(place: Path) -> Path:
    """The run and its teacher, laid out as the command had them; the run's folder."""
    shutil.copytree(EARLIER / "teacher", place / "teacher")
    return Path(shutil.copytree(EARLIER / "run", place / "runs" / "run"))


def test_its_checkpoints_are_whole_and_the_newest_is_found(tmp_path):
    run = copied_to(tmp_path)
    newest, damage = newest_whole(run)
    assert newest is not None and damage == []
    manifest = verify(newest)
    assert manifest.images_seen == 352
    assert manifest.optimizer_steps == {"fake_score": 11, "generator": 11}


def test_pictures_are_made_from_it(tmp_path, monkeypatch):
    run = copied_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_generator(str(run)) == run / NEWEST / "generator_ema"
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["generate", "runs/run", "--seeds", "0-3", "--out", "pictures"])
    assert len(list(Path("pictures").glob("seed*.png"))) == 4


def test_its_scores_are_listed(tmp_path):
    found = results_in((copied_to(tmp_path) / EVALUATIONS).read_bytes())
    assert {result["images_seen"] for result in found} == {0, 128, 256}
    best = min(found, key=lambda result: result["scores"]["FD-digits-cnn"])
    assert (best["images_seen"], best["num_images"]) == (256, 96)


def go_on(place: Path) -> subprocess.CompletedProcess[str]:
    """The command that had begun it, again, on one worker."""
    command = [
        sys.executable, "-m", "sid_ray.cli", "distill", "digits-sid",
        "--teacher.source", "teacher", "--run", "run", "--output.folder", "runs",
        "--images", str(IMAGES), "--training.batch-size", "32", "--resources.num-workers", "1",
        "--output.checkpoint-every", "128", "--output.report-every", "64",
        "--evaluation.every", "128", "--evaluation.num-images", "96",
        "--evaluation.batch-size", "64", "--evaluation.no-final-report",
        "--output.keep-checkpoints", "2",
    ]  # fmt: skip
    foreign = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )


def test_a_run_with_dropout_is_refused_for_its_masks(tmp_path):
    """Masks are others since; what it has stays as it is."""
    run = copied_to(tmp_path)
    record = (run / "run.json").read_bytes()
    done = go_on(tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "began with dropout masks 1" in done.stderr and "another --run name" in done.stderr
    assert (run / "run.json").read_bytes() == record


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """It went on, as if it had begun with the masks of now."""
    place = tmp_path_factory.mktemp("earlier")
    run = copied_to(place)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"masks": MASKS}))
    done = go_on(place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed at 352 images from {NEWEST}" in done.stdout
    return run


@pytest.mark.timeout(600)
def test_it_goes_on_as_the_earlier_code_did(resumed):
    """Three updates more, by other masks: as far, and the same way."""
    newest, damage = newest_whole(resumed)
    assert newest is not None and damage == []
    assert verify(newest).images_seen == IMAGES
    before = load_file(EARLIER / "run" / NEWEST / "generator_ema" / "model.safetensors")
    theirs = load_file(EARLIER / "went_on" / "generator_ema.safetensors")
    ours = load_file(newest / "generator_ema" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    flat = [
        torch.cat([state[name].flatten() for name in sorted(theirs)])
        for state in (before, theirs, ours)
    ]
    # Adam without a first moment steps by the sign: other masks, other signs. Nearer than before.
    assert relative_error(flat[2] - flat[0], flat[1] - flat[0]) < 1


@pytest.mark.timeout(600)
def test_its_scores_and_curves_go_on_too(resumed, tmp_path):
    found = results_in((resumed / EVALUATIONS).read_bytes())
    assert {result["images_seen"] for result in found} == {0, 128, 256, 384, IMAGES}
    # Its MLflow store is lost: what the run's journal holds went to the new one.
    history = find_run(str(resumed)).history
    scored = [point.images_seen for point in history["eval/FD-digits-cnn"]]
    assert scored == [0, 128, 256, 384, IMAGES]
    reported = [point.images_seen for point in history["fake_loss"]]
    assert reported == list(range(64, IMAGES + 1, 64))
    page = tmp_path / "page.html"
    write_comparison([str(resumed)], page, range(2), tell=lambda text: None)
    text = page.read_text()
    assert "FD-digits-cnn" in text and text.count("data:image/png") == 2
