"""The model folder of a finished run, and what its name leads to."""

from __future__ import annotations

import json
from dataclasses import replace as changed

import pytest

from sid_ray.checkpoint.best import SCORE, find_best, keep_best
from sid_ray.checkpoint.find import find_generator
from sid_ray.commands.release import release
from sid_ray.config.distill_config import replace
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunFolder, only_driver
from sid_ray.storage.cache import file_sha256
from sid_ray.training.assemble import generator_description
from sid_ray.weights.folder import WEIGHTS, load_model, save_model
from sid_ray.weights.sources import resolve_source

SCORES = {"FD-digits-cnn": 4.5, "dead_features-digits-cnn": 25}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    config = replace(recipe("digits-sid"), output__folder=str(tmp_path), output__run="run")
    made = RunFolder.of(config)
    made.store.create()
    return made


@pytest.fixture
def config(tmp_path):
    chosen = recipe("digits-sid")
    return replace(chosen, output__folder=str(tmp_path), output__register_model="digits")


def network(folder, config, shift: float):
    net, description = load_model(resolve_source("builtin:digits-teacher"))
    weights = {name: value + shift for name, value in net.state_dict().items()}
    save_model(folder, weights, generator_description(config, description))
    return folder


def test_without_scores_it_is_the_last_generator(run, config, tmp_path):
    last = network(tmp_path / "last", config, 0.0)
    model = release(config, run, str(last), 640, {})
    assert model.folder == run.local / "model"
    assert (model.images_seen, model.name, model.scores) == (640, "digits", {})
    assert file_sha256(model.folder / WEIGHTS) == file_sha256(last / WEIGHTS)
    assert "No scores were taken" in (model.folder / "README.md").read_text()
    assert find_generator(model.folder) == model.folder


def test_with_scores_it_is_the_best_one_with_its_own_numbers(run, config, tmp_path):
    last, best = network(tmp_path / "last", config, 0.0), network(tmp_path / "b", config, 0.5)
    told: list[str] = []
    for images_seen in (128, 320):
        result = {"images_seen": images_seen, "scores": SCORES, "weights_sha256": "x"}
        keep_best(run.store, best / WEIGHTS, result, told.append)
    assert [path.name for path in run.local.iterdir()] == ["best_000000000320"]
    model = release(config, run, str(last), 640, {"FD-digits-cnn": 9.0})
    assert (model.images_seen, model.scores) == (320, {"FD-digits-cnn": 4.5})
    assert file_sha256(model.folder / WEIGHTS) == file_sha256(best / WEIGHTS)
    card = (model.folder / "README.md").read_text()
    assert file_sha256(best / WEIGHTS) in card
    assert "| FD-digits-cnn | 4.5 |" in card
    again = release(config, run, str(last), 640, {})  # a run that goes on, or is started again
    assert again == changed(model)
    assert told == []


def test_the_best_of_a_driver_that_has_lost_the_run_changes_nothing(run, config, tmp_path):
    best = network(tmp_path / "b", config, 0.5)

    def keep(images_seen, lease):
        result = {"images_seen": images_seen, "scores": SCORES, "weights_sha256": "x"}
        keep_best(run.store, best / WEIGHTS, result | {"lease": lease}, print)

    with only_driver(run):
        keep(128, 1)
    with only_driver(run):
        assert find_best(run.store) == "best_000000000128"
        keep(320, 1)
        assert find_best(run.store) == "best_000000000128", "not written"
        (run.store / "best_000000000640").write(SCORE, json.dumps({"lease": 1}))
        assert find_best(run.store) == "best_000000000128", "was on its way: does not count"
        keep(192, 2)
        assert find_best(run.store) == "best_000000000192"
    assert [name for name in run.store.folders() if name.startswith("best")] == [
        "best_000000000192"
    ]
