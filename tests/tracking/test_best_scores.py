"""The best value of each score, over starts that repeat what was told."""

import math

from hypothesis import given
from hypothesis import strategies as st

from sid_ray.tracking.best_scores import BestScores

VALUES = st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan, math.inf]), max_size=8)


@given(VALUES, st.data())
def test_a_resumed_run_hears_the_same_of_its_best(values, data):
    """Told 0..n, then again from anywhere: the one best place is the best one each time."""
    best = BestScores()
    for images_seen, value in enumerate(values):
        best.see({"FID": value, "IS": -value}, images_seen)
    finite = [value for value in values if math.isfinite(value)]
    told = {"best/FID": min(finite), "best/IS": -min(finite)} if finite else {}
    assert best.told() == told
    for images_seen in range(data.draw(st.integers(0, len(values))), len(values)):
        value = values[images_seen]
        is_it = bool(finite) and images_seen == values.index(min(finite))
        new = best.see({"FID": value, "IS": -value}, images_seen)
        assert new == (frozenset({"FID", "IS"}) if is_it else frozenset())
    assert best.told() == told


def test_scores_are_best_on_their_own():
    best = BestScores()
    assert best.see({"FID": 3.0, "IS": 8.0, "IS_deviation": 1.0}, 0) == {"FID", "IS"}
    assert best.see({"FID": 4.0, "IS": 9.0}, 64) == {"IS"}
    assert best.see({"FID": 2.0, "IS": 9.0}, 128) == {"FID"}
    assert best.told() == {"best/FID": 2.0, "best/IS": 9.0}


def test_what_another_machine_told_counts():
    best = BestScores()
    best.learn({"FID": (3.0, 64), "IS": (8.0, 128)})
    assert best.see({"FID": 3.0, "IS": 8.5}, 192) == {"IS"}
    best.learn({"FID": (3.0, 32), "IS": (8.0, 0)})
    assert best.see({"FID": 3.0, "IS": 8.5}, 32) == {"FID"}
