"""A trial from one decision to the next, without Ray: tries, scores, and the end of its parent."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sid_ray.checkpoint.manifest import MANIFEST, SCHEMA, Manifest, checkpoint_name
from sid_ray.commands.distill import GAVE_UP, LOST, STOPPED
from sid_ray.config.distill_config import replace as with_values
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import WAITING
from sid_ray.storage import errors
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.errors import UnreachableStoreError
from sid_ray.sweep import segment
from sid_ray.sweep.segment import (
    REFUSED,
    TRIES,
    Trial,
    TrialDivergedError,
    TrialFailedError,
    TrialStoppedError,
    scores_in,
)
from sid_ray.training.assemble import find_start, generator_description
from sid_ray.weights.description import save_model
from sid_ray.weights.folder import load_model


class FakeTrial(Trial):
    """Its processes end with given codes, after they have seen so many images."""

    def __init__(self, tmp_path, ends):
        config = with_values(recipe("digits-sida"), output__folder=str(tmp_path), output__run="t")
        super().__init__(config, tmp_path, "127.0.0.1:1")
        self.ends, self.seen, self.asked = list(ends), 0, []
        self.said, self.does = "", lambda: None

    @property
    def images_seen(self):
        return self.seen

    def run_process(self, images, workers):
        self.asked.append((images, workers))
        code, self.seen = self.ends.pop(0)
        self.output.write_text(self.said or f"starting\n\nfailed: code {code}\nkept\n\n")
        self.does()
        return code


def test_a_segment_goes_on_until_its_images_are_seen(tmp_path):
    trial = FakeTrial(tmp_path, [(-9, 100), (1, 200), (0, 640)])
    assert trial.advance(600, 2) == 640
    assert trial.asked == [(600, 2)] * 3
    assert trial.advance(600, 2) == 640  # nothing to do


def test_failures_in_a_row_end_a_trial(tmp_path):
    trial = FakeTrial(tmp_path, [(1, 0)] * 9)
    with pytest.raises(TrialFailedError, match="t: kept"):
        trial.advance(600, 2)
    assert len(trial.asked) == TRIES


def test_a_new_checkpoint_fills_the_budget_of_tries(tmp_path):
    ends = [(-9, 0), (-9, 0), (-9, 64), (-9, 64), (-9, 64), (0, 640)]
    assert FakeTrial(tmp_path, ends).advance(600, 1) == 640


def test_wrong_input_is_not_tried_again(tmp_path):
    trial = FakeTrial(tmp_path, [(REFUSED, 0)] * 3)
    with pytest.raises(TrialFailedError):
        trial.advance(600, 2)
    assert len(trial.asked) == 1


def test_a_run_that_gave_up_is_not_tried_again(tmp_path):
    trial = FakeTrial(tmp_path, [(GAVE_UP, 64)] * 3)
    with pytest.raises(TrialDivergedError, match="t: code 3"):
        trial.advance(600, 2)
    assert len(trial.asked) == 1


def test_a_trial_whose_storage_was_away_goes_on_when_it_is_back(tmp_path, monkeypatch):
    """Its driver stopped before its lease was over; a new one would be refused until then."""
    looks = []

    def look(store):
        looks.append(store)
        if len(looks) < 3:
            raise UnreachableStoreError("no answer")

    monkeypatch.setattr(segment, "newest_listed", look)
    monkeypatch.setattr(errors, "RETRY_S", (0.01,))
    trial = FakeTrial(tmp_path, [(LOST, 64), (0, 640)])
    assert trial.advance(600, 1) == 640
    assert len(looks) == 3


def test_a_run_that_was_asked_to_end_is_not_started_again(tmp_path):
    trial = FakeTrial(tmp_path, [(STOPPED, 64)] * 3)
    with pytest.raises(TrialStoppedError):
        trial.advance(600, 2)
    assert len(trial.asked) == 1


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path, monkeypatch):
    """The driver of an actor that was killed saves its state before it goes."""
    monkeypatch.setattr(segment, "AGAIN_S", 0.01)
    trial = FakeTrial(tmp_path, [(REFUSED, 0), (REFUSED, 0), (0, 640)])
    trial.said = "sid-ray: run 't' is already being worked on by process 7; wait for it"
    assert trial.advance(600, 2) == 640


def evaluation(images_seen, scores, sha="w", num_images=128):
    return {
        "images_seen": images_seen,
        "weights_sha256": sha,
        "num_images": num_images,
        "scores": scores,
    }


def test_scores_are_those_of_the_images_and_weights_asked_for(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    told = [
        evaluation(128, {"FID": 9.0}),
        evaluation(256, {"FID": 5.0}),
        evaluation(128, {"FID": 8.0, "CLIP": 0.3}),
        evaluation(128, {"FID": 2.0}, num_images=64),
        evaluation(128, {"FID": 1.0}, sha="of another run"),
    ]
    cut = json.dumps(evaluation(128, {"FID": 0.5}))  # the last line is not whole
    path.write_text("\n".join([*map(json.dumps, told), "not JSON", "{}", cut]))
    assert scores_in(path, 128, 128, "w") == {"FID": 8.0, "CLIP": 0.3}
    assert scores_in(path, 128, 128) == {"FID": 1.0, "CLIP": 0.3}
    assert scores_in(path, 256, 128, "w") == {"FID": 5.0}
    assert scores_in(path, 384, 128) == {}
    assert scores_in(tmp_path / "none", 1, 128) == {}


def test_what_waits_is_scored_by_the_run_started_again(tmp_path):
    trial = FakeTrial(tmp_path, [(0, 640)])
    folder = tmp_path / "t"
    waiting = folder / WAITING / "000000000640.safetensors"
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(b"")
    number = trial.config.evaluation.num_images
    line = json.dumps(evaluation(640, {"FID": 7.0}, num_images=number)) + "\n"
    trial.does = lambda: (folder / "evaluations.jsonl").write_text(line)
    assert trial.scores(640, ["FID"], 2) == {"FID": 7.0}
    assert trial.asked == [(640, 2)]


def test_a_checkpoint_whose_score_is_missing_is_scored_here(tmp_path, monkeypatch):
    """By the protocol of the evaluator: the same numbers as a run told."""
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    config = with_values(
        recipe("digits-sida"),
        output__folder=str(tmp_path),
        output__run="t",
        evaluation__num_images=128,
    )
    start = find_start(config)
    network, description = load_model(start.teacher)
    folder = tmp_path / "t" / checkpoint_name(640, "a1")
    described = generator_description(config, description)
    save_model(folder / "generator_ema", network.state_dict(), described)
    digest = file_sha256(folder / "generator_ema" / "model.safetensors")
    size = (folder / "generator_ema" / "model.safetensors").stat().st_size
    name = "generator_ema/model.safetensors"
    manifest = Manifest(SCHEMA, 640, "{}", {}, {name: digest}, sizes={name: size})
    (folder / MANIFEST).write_text(manifest.to_json())
    trial = Trial(config, tmp_path, "")
    assert trial.images_seen == 640
    found = trial.scores(640, ["FD-digits-cnn"], 1)
    assert found["FD-digits-cnn"] > 0
    (line,) = (tmp_path / "t" / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["weights_sha256"] == digest
    told = scores_in(tmp_path / "t" / "evaluations.jsonl", 640, 128, digest)
    assert found.items() <= told.items()
    with pytest.raises(TrialFailedError, match="no score FID, there are"):
        trial.scores(640, ["FID"], 1)


CHILD = """
import time
from sid_ray.sweep.trial import end_with_parent
end_with_parent()
try:
    print("ready", flush=True)
    time.sleep({seconds})
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def child(seconds, stdin, background=False):
    """``background``: as a script's ``... &`` starts it, SIGINT ignored."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(seconds=seconds)],
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None,
        stdin=stdin,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_process_ends_with_its_parent_however_that_dies():
    """A parent in between is killed -9: only its end of the pipe tells."""
    read, write = os.pipe()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[write]
    )
    process = child(60, read)
    os.close(read)
    os.close(write)
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    assert process.communicate(timeout=20)[0] == "stopped\n"
    assert time.monotonic() - began < 10


def test_a_process_that_ends_first_ends_well():
    process = child(0, subprocess.PIPE)
    assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("background", [False, True])
def test_asking_a_process_to_end(tmp_path, background):
    trial = Trial(recipe("digits-sida"), tmp_path, "")
    trial.end()  # none there
    trial.process = process = child(60, subprocess.PIPE, background)
    assert process.stdout.readline() == "ready\n"
    trial.end()
    assert process.returncode == 0
    assert trial.process is None
