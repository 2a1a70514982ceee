"""What the tracker says, keeps and writes, without Ray."""

import mlflow
import pytest

from sid_ray.actors.tracker import Tracker
from tests.tracking import target


@pytest.fixture
def tracker(tmp_path):
    made = Tracker.__ray_metadata__.modified_class(target(tmp_path), str(tmp_path))
    yield made
    made.finish("FINISHED", timeout_s=5.0)


def test_a_line_of_several_ranks_is_said_once_whatever_seconds_they_measured(tracker):
    for seconds in ("11 s", "12 s", "9.5 s"):
        tracker.event(f"storage is back after {seconds}: checkpoint_1 is uploaded")
    tracker.event("storage is back after 1 s: checkpoint_2 is uploaded")
    assert len(tracker.board().events) == 2


def test_the_best_score_of_all_starts_counts(tmp_path):
    kind = Tracker.__ray_metadata__.modified_class
    starts = (([5.0, 3.0, float("nan")], 3.0), ([4.0, 2.0], 2.0))
    for start, (scores, best) in enumerate(starts):
        tracker = kind(target(tmp_path), str(tmp_path))
        for number, score in enumerate(scores):
            tracker.log_score({"fd": score}, 10 * (3 * start + number))
        assert tracker.board().metrics["best_fd"] == best
        assert tracker.finish("FINISHED") == ""
    client = mlflow.MlflowClient(target(tmp_path).uri)
    history = client.get_metric_history(tracker.board().run_id, "best_fd")
    found = [(point.step, point.value) for point in history]
    assert found == [(0, 5), (10, 3), (20, 3), (30, 3), (40, 2)]
    assert client.get_run(tracker.board().run_id).info.status == "FINISHED"


def test_what_workers_tell_after_ctrl_c_is_kept_too(tmp_path):
    tracker = Tracker.__ray_metadata__.modified_class(target(tmp_path), str(tmp_path))
    tracker.log({"loss": 1.0}, 64)
    assert tracker.finish("KILLED") == ""
    tracker.log({"loss": 2.0}, 128)
    tracker.finish("FINISHED")
    client = mlflow.MlflowClient(target(tmp_path).uri)
    history = client.get_metric_history(tracker.board().run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(64, 1.0), (128, 2.0)]
