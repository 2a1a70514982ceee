"""How trials end in the ledger, by what Ray Tune tells."""

from types import SimpleNamespace

import pytest

from sid_ray.config.distill_config import replace
from sid_ray.sweep.arithmetic import WORST
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.notes import WATCHES, Notes, SweepWatch
from sid_ray.sweep.runner import account_for_cut_trials, anything_left
from sid_ray.sweep.trainable import Spec
from tests.sweep.spaces import order_in, space_of

SPACE = space_of("  objective.alpha: {uniform: [0.6, 1.4]}\n")


def tune_trial(error_file=None):
    spec = Spec("000", "s-000", {"objective.alpha": 1.0})
    return SimpleNamespace(config={"spec": spec._asdict()}, error_file=error_file)


def result(images, ended="", why="", done=False):
    score = WORST if ended else 5.0
    return {
        "images_seen": images, "run": "s-000", "segment_seconds": 1.0, "FD-digits-cnn": score,
        "ended": ended, "why": why, "done": done,
    }  # fmt: skip


@pytest.fixture
def told(tmp_path):
    """What a person was told, and the callback that tells it."""
    lines = []
    WATCHES[str(tmp_path)] = SweepWatch(lines.append)
    notes = Notes(str(tmp_path), SPACE)
    notes.on_trial_start(0, [], tune_trial())
    return lines, notes


@pytest.mark.parametrize(
    ("last", "state", "scores"),
    [
        (result(640), "running", 1),
        (result(640, done=True), "stopped", 1),
        (result(6400, done=True), "finished", 1),
        (result(320, "diverged", "the loss grew", True), "diverged", 0),
        (result(320, "failed", "no network", True), "failed", 0),
    ],
)
def test_ends(tmp_path, told, last, state, scores):
    lines, notes = told
    notes.on_trial_result(1, [], tune_trial(), last)
    (trial,) = Ledger(tmp_path).trials().values()
    assert (trial.state, len(trial.segments)) == (state, scores)
    assert trial.images_seen == last["images_seen"]
    assert trial.why == last["why"]
    assert len(lines) == 1
    assert (last["why"] in lines[0]) and lines[0].startswith("000: ")


def test_a_trial_that_cannot_be_made_fails_with_its_reason(tmp_path, told):
    lines, notes = told
    notes.on_trial_result(1, [], tune_trial(), result(640))
    error = tmp_path / "error.txt"
    error.write_text("Traceback\n  x\nray.exceptions.RayTaskError: no such file\n\n")
    notes.on_trial_error(2, [], tune_trial(error))
    trial = Ledger(tmp_path).trials()["000"]
    assert (trial.state, trial.images_seen) == ("failed", 640)
    assert trial.why.endswith("no such file")
    notes.on_trial_error(2, [], tune_trial(None))
    assert lines[-1] == "000: failed: its actor died"


def test_what_tune_leaves_open_is_lost_with_its_images(tmp_path):
    order = order_in(tmp_path, SPACE)
    order.folder.mkdir()
    assert anything_left(order)
    ledger = Ledger(order.folder)
    ledger.begin("000", "s-000", {})
    ledger.segment("000", "s-000", 640, {"FD-digits-cnn": 5.0}, 1.0)
    account_for_cut_trials(replace(order.base, output__folder=str(tmp_path)), order.folder)
    trial = ledger.trials()["000"]
    assert (trial.state, trial.images_seen, trial.why) == ("lost", 640, "Ray Tune ended without it")
    assert anything_left(order), "the same command tries it again"
    for number in range(8):
        ledger.begin(f"{number:03}", f"s-{number:03}", {})
        ledger.end(f"{number:03}", "stopped", "", 640)
    assert not anything_left(order)
