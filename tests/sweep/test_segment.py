"""A trial from one decision to the next, without Ray: tries, scores, and the end of its parent."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sid_ray.config import replace as with_values
from sid_ray.recipes import recipe
from sid_ray.sweep.segment import REFUSED, TRIES, Trial, TrialFailedError, scores_in


class FakeTrial(Trial):
    """Its processes end with given codes, after they have seen so many images."""

    def __init__(self, tmp_path, ends):
        config = with_values(recipe("digits-sida"), output__folder=str(tmp_path), output__run="t")
        super().__init__(config, tmp_path, "127.0.0.1:1")
        self.ends, self.seen, self.asked = list(ends), 0, []

    @property
    def images_seen(self):
        return self.seen

    def run_process(self, images, workers):
        self.asked.append((images, workers))
        code, self.seen = self.ends.pop(0)
        self.output.write_text(f"starting\n\nfailed: code {code}\n\n")
        return code


def test_a_segment_goes_on_until_its_images_are_seen(tmp_path):
    trial = FakeTrial(tmp_path, [(-9, 100), (1, 200), (0, 640)])
    assert trial.advance(600, 2) == 640
    assert trial.asked == [(600, 2)] * 3
    assert trial.advance(600, 2) == 640  # nothing to do


def test_failures_in_a_row_end_a_trial(tmp_path):
    trial = FakeTrial(tmp_path, [(1, 0)] * 9)
    with pytest.raises(TrialFailedError, match="t: failed: code 1"):
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


def test_scores_are_those_of_the_images_asked_for(tmp_path):
    journal = tmp_path / "tracking.jsonl"
    records = [
        [1, "metrics", {"metrics": {"fake_score_loss": 3.0}, "step": 128, "stamp": 1}],
        [2, "metrics", {"metrics": {"eval/FID": 9.0, "best/FID": 9.0}, "step": 128, "stamp": 2}],
        [3, "metrics", {"metrics": {"eval/FID": 5.0}, "step": 256, "stamp": 3}],
        [4, "metrics", {"metrics": {"eval/FID": 8.0, "eval/CLIP": 0.3}, "step": 128, "stamp": 4}],
        [5, "status", {"status": "FINISHED"}],
    ]
    lines = ['{"run": "k"}', *map(json.dumps, records), "not JSON"]
    cut = json.dumps([6, "metrics", {"metrics": {"eval/FID": 1.0}, "step": 128}])
    journal.write_text("\n".join([*lines, cut]))  # the last line is not whole
    assert scores_in(journal, 128) == {"FID": 8.0, "CLIP": 0.3}
    assert scores_in(journal, 256) == {"FID": 5.0}
    assert scores_in(journal, 384) == {}
    assert scores_in(tmp_path / "none", 1) == {}


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


def child(seconds, stdin):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(seconds=seconds)],
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


def test_asking_a_process_to_end(tmp_path):
    trial = Trial(recipe("digits-sida"), tmp_path, "")
    trial.end()  # none there
    trial.process = process = child(60, subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    trial.end()
    assert process.returncode == 0
    assert trial.process is None
