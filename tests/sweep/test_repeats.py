"""Best trial and recipe with other seeds: which runs they are, and what they say."""

import threading

import pytest

from sid_ray.recipes.registry import recipe
from sid_ray.sweep import repeat_runs
from sid_ray.sweep.ledger import Ledger
from sid_ray.sweep.repeats import (
    REPEATS,
    Repeat,
    add_repeat,
    lines_of,
    mean_of,
    most_of,
    read_repeats,
    repeats_of,
)
from sid_ray.sweep.results import SweepOrder
from sid_ray.sweep.segment import TrialDivergedError, TrialStoppedError
from sid_ray.sweep.space_file import parse_space

TEXT = """\
recipe: digits-sida
metric: FD-digits-cnn
budget: {images: 6400, grace: 640, reduction: 3}
scheduler: asha
trials: 3
seeds: [4, 1, 2]
fields:
  objective.alpha: {uniform: [0.6, 1.4]}
  evaluation.num_images: 128
"""
SCORE = "FD-digits-cnn"
SPACE, BASE = parse_space(TEXT, "s.yaml"), recipe("digits-sida")
OWN = {"objective.alpha": 1.0}


def told(tmp_path, *trials):
    """Trials of a ledger, each (alpha, score, how it ended)."""
    ledger = Ledger(tmp_path)
    for number, (alpha, score, state) in enumerate(trials):
        name, run = f"{number:03}", f"s-{number:03}"
        images = 6400 if state == "finished" else 640
        ledger.begin(name, run, {"objective.alpha": alpha})
        ledger.segment(name, run, images, {SCORE: score}, 1.0)
        ledger.end(name, state, "", images)
    return list(ledger.trials().values())


def cells(found):
    return [(repeat.of, repeat.seed, repeat.run, repeat.ended) for repeat in found]


def test_trials_at_their_end_are_repeats_with_the_first_seed(tmp_path):
    trials = told(tmp_path, (1.0, 6.0, "finished"), (1.2, 5.0, "finished"), (0.9, 1.0, "stopped"))
    found = repeats_of("s", SPACE, BASE, trials)
    assert cells(found) == [
        ("best", 4, "s-001", True),
        ("best", 1, "s-best-seed1", False),
        ("best", 2, "s-best-seed2", False),
        ("recipe", 4, "s-000", True),
        ("recipe", 1, "s-recipe-seed1", False),
        ("recipe", 2, "s-recipe-seed2", False),
    ]
    assert [repeat.point for repeat in found] == [{"objective.alpha": 1.2}] * 3 + [OWN] * 3
    assert sum(not repeat.ended for repeat in found) == most_of(SPACE)


def test_a_recipe_that_no_trial_ended_is_run_with_the_first_seed_too(tmp_path):
    trials = told(tmp_path, (1.0, 9.0, "stopped"), (1.2, 5.0, "finished"))
    found = repeats_of("s", SPACE, BASE, trials)
    assert cells(found)[3] == ("recipe", 4, "s-recipe-seed4", False)


def test_the_recipe_may_be_the_best(tmp_path):
    found = repeats_of("s", SPACE, BASE, told(tmp_path, (1.0, 4.0, "finished")))
    assert {repeat.of for repeat in found} == {"best"}


def test_nothing_is_repeated_with_one_seed_or_without_a_trial(tmp_path):
    one = parse_space(TEXT.replace("[4, 1, 2]", "[4]"), "s.yaml")
    trials = told(tmp_path, (1.2, 5.0, "finished"))
    assert repeats_of("s", one, BASE, trials) == []
    assert most_of(one) == 0
    assert repeats_of("s", SPACE, BASE, []) == []


def test_what_ended_is_read_again_without_half_a_line(tmp_path):
    trials = told(tmp_path, (1.2, 5.0, "finished"))
    first = Repeat("best", 1, "s-best-seed1", {"objective.alpha": 1.2}, 6400, {SCORE: 5.5})
    add_repeat(tmp_path, first)
    with (tmp_path / REPEATS).open("a") as file:
        file.write('{"of": "best", "see')
    assert read_repeats(tmp_path) == [first]
    second = Repeat("best", 2, "s-best-seed2", {"objective.alpha": 1.2}, 640, why="gave up")
    add_repeat(tmp_path, second)
    assert read_repeats(tmp_path) == [first, second]
    found = repeats_of("s", SPACE, BASE, trials, read_repeats(tmp_path))
    assert found[1:3] == [first, second]
    assert [repeat.ended for repeat in found[:3]] == [True] * 3


class FakeTrial:
    """Ends as its run's name says."""

    ran, lock = [], threading.Lock()

    def __init__(self, config, folder, address, environment):
        self.config, self.images_seen = config, 0

    def advance(self, images, workers):
        with self.lock:
            self.ran.append((self.config.run_name, self.config.training.seed, images, workers))
        if self.config.run_name == "s-best-seed2":
            self.images_seen = 1280
            raise TrialDivergedError("s-best-seed2: gave up")
        if self.config.run_name == "s-recipe-seed2":
            raise TrialStoppedError("s-recipe-seed2")
        return images

    def scores(self, seen, names, workers):
        return dict.fromkeys(names, 5.0 + self.config.training.seed)


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.setattr(repeat_runs, "Trial", FakeTrial)
    FakeTrial.ran = []
    base = BASE.from_json(BASE.to_json())
    order = SweepOrder("s", SPACE, TEXT, base, 1)
    monkeypatch.setattr(SweepOrder, "folder", tmp_path)
    said = []
    return repeat_runs.Runner(order, "127.0.0.1:1", 8, {}, said.append), said


def test_each_is_trained_to_the_end_with_its_seed(runner, tmp_path):
    runner, said = runner
    trials = told(tmp_path, (1.0, 6.0, "finished"), (1.2, 5.0, "finished"))
    found = [r for r in repeats_of("s", SPACE, BASE, trials) if r.run != "s-recipe-seed2"]
    runner.run(found)
    assert FakeTrial.ran == [  # four groups: no more than four workers have one
        ("s-best-seed1", 1, 6400, 4),
        ("s-best-seed2", 2, 6400, 4),
        ("s-recipe-seed1", 1, 6400, 4),
    ]
    ended = {repeat.run: repeat for repeat in read_repeats(tmp_path)}
    assert ended["s-best-seed1"].scores == {SCORE: 6.0}
    gave_up = ended["s-best-seed2"]
    assert (gave_up.images_seen, gave_up.why) == (1280, "s-best-seed2: gave up")
    assert "s-best-seed1: 6,400 images, FD-digits-cnn 6" in said


def test_one_that_was_asked_to_stop_is_no_end(runner, tmp_path):
    runner, _ = runner
    trials = told(tmp_path, (1.0, 6.0, "finished"), (1.2, 5.0, "finished"))
    with pytest.raises(TrialStoppedError):
        runner.run(repeats_of("s", SPACE, BASE, trials))
    left = repeats_of("s", SPACE, BASE, trials, read_repeats(tmp_path))
    assert [repeat.run for repeat in left if not repeat.ended] == ["s-recipe-seed2"]


def test_the_table_has_a_mean_only_where_every_seed_has_a_score():
    def row(of, *scores):
        return [
            Repeat(
                of, seed, f"s-{of}", {}, 6400, {SCORE: score} if score else {}, "" if score else "x"
            )
            for seed, score in zip(SPACE.seeds, scores, strict=True)
        ]

    best, own = row("best", 4.0, 5.0, 6.6), row("recipe", 7.0, None, 7.0)
    assert mean_of(best, SCORE) == pytest.approx(5.2)
    assert mean_of(own, SCORE) is None
    lines = lines_of(SPACE, best + own)
    assert [line.split() for line in lines[:3]] == [
        ["FD-digits-cnn", "seed", "4", "seed", "1", "seed", "2", "mean"],
        ["best", "(s-best)", "4.00", "5.00", "6.60", "5.20"],
        ["recipe", "(s-recipe)", "7.00", "-", "7.00", "-"],
    ]
    assert "seed 4" in lines[3]
    assert lines_of(SPACE, []) == []
