"""What the tracker says, keeps and writes, without Ray."""

import io

import mlflow
import pytest
from PIL import Image

from sid_ray.actors.tracker import Tracker
from tests.support.tracking import target
from tests.support.waiting import wait_for


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


def test_the_reason_of_a_stop_is_the_rank_that_failed_not_who_missed_it(tracker):
    def stopped(*failures):
        tracker.group_starts(2)
        tracker.beat(64, 1.0)
        for failure in failures:
            tracker.failed(failure)
        tracker.stopped("a worker was lost", False, 2.0)
        tracker.group_starts(2)
        tracker.beat(128, 3.0)
        return tracker.board().interruptions[-1].reason

    assert stopped("worker 1 failed: x", "worker 0 failed: y") == "worker 1 failed: x"
    assert stopped() == "a worker was lost", "what an earlier group had is done"


def test_all_ranks_start_with_the_micro_batch_that_was_found(tracker):
    assert tracker.micro_batch() == 0
    assert [tracker.smaller_passes(96, 48) for _ in range(2)] == [48, 48]
    assert tracker.micro_batch() == 48


def test_the_best_score_of_all_starts_counts(tmp_path):
    kind = Tracker.__ray_metadata__.modified_class
    nan = float("nan")
    starts = (([(0, 5.0), (10, 3.0), (20, nan)], 3.0), ([(10, 3.0), (20, nan), (30, 2.0)], 2.0))
    for scores, best in starts:
        tracker = kind(target(tmp_path), str(tmp_path))
        for images_seen, score in scores:
            new = tracker.log_score({"FD-x": score, "IS-x": -score}, images_seen)
            assert new == (frozenset() if images_seen == 20 else {"FD-x", "IS-x"})
        metrics = tracker.board().metrics
        assert (metrics["best/FD-x"], metrics["best/IS-x"]) == (best, -best)
        assert "FD-x" not in metrics and "eval/FD-x" in metrics
        assert tracker.finish("FINISHED") == ""
    client = mlflow.MlflowClient(target(tmp_path).uri)
    for name, sign in (("best/FD-x", 1), ("best/IS-x", -1)):
        history = client.get_metric_history(tracker.board().run_id, name)
        found = [(point.step, sign * point.value) for point in history]
        assert found == [(0, 5), (10, 3), (20, 3), (30, 2)]
    assert client.get_run(tracker.board().run_id).info.status == "FINISHED"


def test_the_best_score_is_known_on_a_machine_without_the_journal(tmp_path):
    kind = Tracker.__ray_metadata__.modified_class
    first = kind(target(tmp_path), str(tmp_path / "one"))
    for images_seen, score in ((0, 5.0), (10, 3.0), (20, 4.0)):
        first.log_score({"FD-x": score}, images_seen)
    assert first.finish("KILLED") == ""
    second = kind(target(tmp_path), str(tmp_path / "two"))
    wait_for(lambda: second.board().run_id, "MLflow answers")
    assert second.log_score({"FD-x": 3.0}, 10) == {"FD-x"}
    assert second.log_score({"FD-x": 4.0}, 20) == second.log_score({"FD-x": 3.5}, 30) == set()
    assert second.board().metrics["best/FD-x"] == 3.0
    assert second.finish("FINISHED") == ""


def test_a_picture_that_a_resumed_run_makes_again_is_one_image(tmp_path):
    kind, out = Tracker.__ray_metadata__.modified_class, io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    for folder in ("one", "one", "two"):  # the last one on a machine without the journal
        tracker = kind(target(tmp_path), str(tmp_path / folder))
        for images_seen in (0, 12800):
            tracker.log_picture("samples", out.getvalue(), images_seen)
        assert tracker.finish("FINISHED") == ""
    kept = tmp_path / "two" / "pictures"
    assert sorted(file.name for file in kept.iterdir()) == [
        "samples-000000000000.png", "samples-000000012800.png",
    ]  # fmt: skip
    client = mlflow.MlflowClient(target(tmp_path).uri)
    names = [i.path for i in client.list_artifacts(tracker.board().run_id, "images")]
    assert len(names) == 4
    for step in (0, 12800):
        assert sum(f"images/samples+step+{step}+timestamp+" in name for name in names) == 2


def test_what_workers_tell_after_ctrl_c_is_kept_too(tmp_path):
    tracker = Tracker.__ray_metadata__.modified_class(target(tmp_path), str(tmp_path))
    tracker.log({"loss": 1.0}, 64)
    assert tracker.finish("KILLED") == ""
    tracker.log({"loss": 2.0}, 128)
    tracker.finish("FINISHED")
    client = mlflow.MlflowClient(target(tmp_path).uri)
    history = client.get_metric_history(tracker.board().run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(64, 1.0), (128, 2.0)]
