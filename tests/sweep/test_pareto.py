"""The Pareto front against its definition and Optuna's; which trial is the best."""

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.sweep.pareto import best_trial, front, front_of, ranked
from sid_ray.sweep.space import Metric
from tests.sweep.ledgers import record

FID, CLIP = Metric("FID", "min"), Metric("CLIP", "max")


def test_a_front_by_hand():
    scores = {
        "a": {"FID": 10.0, "CLIP": 0.30},
        "b": {"FID": 12.0, "CLIP": 0.31},
        "c": {"FID": 12.0, "CLIP": 0.30},  # a is nowhere worse
        "d": {"FID": 9.0, "CLIP": 0.28},
        "e": {"FID": float("nan"), "CLIP": 0.4},
        "f": {"FID": 1.0},
        "g": {"FID": 10.0, "CLIP": 0.30},
    }
    assert front([FID, CLIP], scores) == ["d", "a", "g", "b"]
    assert front([FID], scores) == ["f"]
    assert front([FID, CLIP], {}) == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), max_size=15))
def test_none_of_the_front_is_dominated_and_all_others_are(points):
    metrics = [Metric("x", "min"), Metric("y", "max"), Metric("z", "min")]
    scores = {
        str(n): dict(zip("xyz", map(float, point), strict=True)) for n, point in enumerate(points)
    }
    kept = front(metrics, scores)

    def better(one, other):
        x, y, z = (scores[one][key] - scores[other][key] for key in "xyz")
        return x <= 0 and y >= 0 and z <= 0 and (x < 0 or y > 0 or z < 0)

    for name in scores:
        assert (name in kept) == (not any(better(other, name) for other in scores))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), max_size=12))
def test_the_front_is_that_of_optuna(values):
    """Ties are on the front together; the best trial is on it."""
    metrics = FID, CLIP, Metric("KID", "min")
    names = [metric.name for metric in metrics]
    trials = [
        record(str(n), dict(zip(names, map(float, v), strict=True))) for n, v in enumerate(values)
    ]
    study = optuna.create_study(directions=["minimize", "maximize", "minimize"])
    study.add_trials([optuna.trial.create_trial(values=v) for v in values])
    found = front_of(metrics, trials)
    assert {trial.name for trial in found} == {str(trial.number) for trial in study.best_trials}
    assert [best_trial(metrics, trials)] == (found[:1] or [None])
    assert ranked(metrics, trials)[:1] == found[:1]


def names_of(trials):
    return [trial.name for trial in trials]


def test_trials_that_came_to_their_end_count_first():
    early = record("early", {"FID": 1.0}, "stopped", 100)
    late, later = record("late", {"FID": 3.0}, at=900), record("later", {"FID": 2.0}, at=900)
    gone = record("gone", {"FID": 0.5}, "diverged", 900)
    assert front_of([FID], [early, late, later, gone]) == [later]
    assert front_of([FID], [early, gone]) == [early]
    assert front_of([FID], [gone]) == [] and best_trial([FID], [gone]) is None
    trials = [
        record(str(n), {"FID": score}, state)
        for n, (score, state) in enumerate(
            zip((1.0, 2.0, 3.0, 0.5), ("stopped", "finished") * 2, strict=True)
        )
    ]
    assert best_trial([FID], trials).name == "3"
    trials[3].state = "diverged"
    assert best_trial([FID], trials).name == "1" and names_of(front_of([FID], trials)) == ["1"]
    trials[1].state = "failed"
    assert best_trial([FID], trials).name == "0"


def test_a_trial_without_one_of_the_scores_is_in_no_front():
    trials = [record("0", {"FID": 1.0}), record("1", {"FID": 2.0, "CLIP": 0.3})]
    for state in ("finished", "running"):
        trials[1].state = state
        assert names_of(front_of([FID, CLIP], trials)) == ["1"]
        assert best_trial([FID, CLIP], trials).name == "1"


def test_of_equal_scores_the_next_one_counts_then_the_price():
    trials = [
        record("dear", {"FID": 2.0, "CLIP": 0.3}, at=900),
        record("beaten", {"FID": 2.0, "CLIP": 0.2}, at=100),
        record("cheap", {"FID": 2.0, "CLIP": 0.3}, at=800),
        record("other", {"FID": 3.0, "CLIP": 0.4}, at=100),
    ]
    assert names_of(front_of([FID, CLIP], trials)) == ["cheap", "dear", "other"]
    assert best_trial([FID, CLIP], trials).name == "cheap"
    assert names_of(ranked([FID, CLIP], trials)) == ["cheap", "dear", "beaten", "other"]
    assert best_trial([FID], trials).name == "beaten"


def test_behind_those_that_ended_come_those_that_came_furthest():
    """A score at fewer images is not held against one at more."""
    trials = [
        record("failed", {"FID": 1.0}, "failed", 900),
        record("none", {}, "running", 0),
        record("lucky", {"FID": 1.0}, "stopped", 100),
        record("worse", {"FID": 6.0}, "stopped", 300),
        record("far", {"FID": 5.0}, "running", 300),
        record("diverged", {"FID": 1.0}, "diverged", 300),
        record("ended", {"FID": 9.0}, at=900),
    ]
    order = ["ended", "far", "worse", "lucky", "none", "failed", "diverged"]
    assert names_of(ranked([FID], trials)) == order
