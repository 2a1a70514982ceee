"""The evaluator without Ray: what it takes is scored in order, told, and the best is kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sid_ray.actors import evaluator as module
from sid_ray.actors import examiner
from sid_ray.actors.evaluator import Evaluator
from sid_ray.actors.evaluator_settings import EvaluatorSettings
from sid_ray.checkpoint import snapshot
from sid_ray.checkpoint.best import SCORE, find_best
from sid_ray.checkpoint.find import find_generator
from sid_ray.checkpoint.manifest import EMA_FOLDER
from sid_ray.checkpoint.snapshot import write_average
from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.store import Store
from sid_ray.training.assemble import find_start
from sid_ray.weights.folder import WEIGHTS, load_model
from tests.support.networks import tiny_network

NAME = "FD-digits-cnn"


class Told:
    """A tracker that keeps what it is told; its methods are called as an actor's are."""

    def __init__(self):
        self.calls, self.best = [], float("inf")

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *args: self._called(name, *args))

    def _called(self, name, *args):
        self.calls.append((name, *args))
        if name == "log_score" and args[0][NAME] < self.best:
            self.best = args[0][NAME]
            return frozenset({NAME})
        return frozenset()

    def told(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(module.ray, "get", lambda answer: answer)
    monkeypatch.setattr(module.ray, "get_gpu_ids", list)
    monkeypatch.setattr(module, "step_back", lambda: None)
    threads = torch.get_num_threads()
    yield find_start(recipe("digits-sid"))
    torch.set_num_threads(threads)


def made(start, folder: Path, tracker: Told):
    config = replace(recipe("digits-sid"), evaluation__num_images=100)
    settings = EvaluatorSettings(
        config=config.to_json(),
        teacher=start.description,
        teacher_folder=str(start.teacher),
        run=str(folder / "run"),
        run_key="key",
        waiting=str(folder / "waiting"),
        tracker=tracker,
    )
    (folder / "run").mkdir(exist_ok=True)
    return Evaluator.__ray_metadata__.modified_class(settings)


def weights(start, seed: int):
    """The teacher's, moved a little: another number for each seed."""
    torch.manual_seed(seed)
    net = load_model(start.teacher)[0]
    return {n: v + 0.01 * seed * torch.randn_like(v) for n, v in net.state_dict().items()}


def test_what_it_takes_is_scored_in_order_and_the_best_is_kept(start, tmp_path):
    tracker = Told()
    evaluator = made(start, tmp_path, tracker)
    for images_seen, seed in ((100, 3), (200, 0), (300, 5)):
        evaluator.take(weights(start, seed), images_seen)
    assert evaluator.drain() == ""
    assert [seen for _, seen in tracker.told("log_score")] == [100, 200, 300]
    scores = [found[NAME] for found, _ in tracker.told("log_score")]
    assert scores[1] < scores[0] < scores[2]
    assert all(set(found) == {NAME} for found, _ in tracker.told("log_score"))
    assert [seen for *_, seen in tracker.told("log_picture")] == [100, 200, 300]
    assert tracker.told("log_picture")[0][1].startswith(b"\x89PNG")
    run = tmp_path / "run"
    assert [path.name for path in run.iterdir()] == ["best_000000000200"]
    kept = find_generator(f"{run}/best")
    assert json.loads((kept / SCORE).read_text())["scores"][NAME] == scores[1]
    found = load_model(kept)[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights(start, 0).items())
    assert not list((tmp_path / "waiting").iterdir())


def test_results_name_the_weights_by_the_checksum_of_their_checkpoint(start, tmp_path):
    """So a score can be brought back to the checkpoint that holds its weights."""
    tracker = Told()
    evaluator = made(start, tmp_path, tracker)
    evaluator.take(weights(start, 0), 100)
    evaluator.drain()
    folder = tmp_path / "checkpoint" / EMA_FOLDER
    write_average(folder, weights(start, 0), evaluator._description)
    (result,) = tracker.told("log_evaluation")[0]
    assert result["weights_sha256"] == file_sha256(folder / WEIGHTS)
    assert (result["images_seen"], result["seeds"], result["num_images"]) == (100, "0-99", 100)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_killed_driver_left_is_scored_by_the_next(start, tmp_path, monkeypatch):
    first = made(start, tmp_path, Told())
    monkeypatch.setattr(examiner.Examiner, "examine", lambda *args: exit_thread())

    def exit_thread():
        raise SystemExit  # the process goes while it scores

    first.take(weights(start, 1), 100)
    first._thread.join(20)
    assert not first._thread.is_alive()
    (tmp_path / "waiting" / "000000000200.safetensors.1-abc.part").write_bytes(b"cut")
    monkeypatch.undo()
    monkeypatch.setattr(module.ray, "get", lambda answer: answer)
    monkeypatch.setattr(module.ray, "get_gpu_ids", list)
    monkeypatch.setattr(module, "step_back", lambda: None)
    tracker = Told()
    assert made(start, tmp_path, tracker).drain() == ""
    assert [seen for _, seen in tracker.told("log_score")] == [100]
    assert not list((tmp_path / "waiting").iterdir())


def test_weights_that_cannot_be_scored_are_said_and_passed_over(start, tmp_path):
    tracker = Told()
    evaluator = made(start, tmp_path, tracker)
    evaluator.take(tiny_network().state_dict(), 100)
    evaluator.take(weights(start, 0), 200)
    assert "the evaluation at 100 images failed" in evaluator.drain()
    assert "does not fit the network" in tracker.told("event")[0][0]
    assert [seen for _, seen in tracker.told("log_score")] == [200]


def test_a_run_without_scores_has_no_best(tmp_path):
    assert find_best(Store(str(tmp_path))) is None
    with pytest.raises(UserError, match="no best generator"):
        find_generator(f"{tmp_path}/best")
    (tmp_path / "best_000000000100").mkdir()  # cut before its score was written
    with pytest.raises(UserError, match="no best generator"):
        find_generator(f"{tmp_path}/best")


def test_a_full_disk_costs_a_score_and_is_said(start, tmp_path, monkeypatch):
    tracker = Told()
    evaluator = made(start, tmp_path, tracker)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "write_weights", full)
    evaluator.take(weights(start, 0), 100)
    assert "evaluation at 100 images failed: [Errno 28] No space left" in evaluator.drain()
    assert not tracker.told("log_score")
    assert not list((tmp_path / "waiting").iterdir())
