"""The Pareto front against its definition."""

from hypothesis import given
from hypothesis import strategies as st

from sid_ray.sweep.ledger import Leg, Segment, TrialHistory
from sid_ray.sweep.pareto import front, front_of
from sid_ray.sweep.space import Metric

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


def trial(name, state, at, fid):
    return TrialHistory(
        name, [Leg(name, {}, 0, at)], [Segment(name, at, {"FID": fid})], state=state
    )


def test_trials_that_came_to_their_end_count_first():
    early = trial("early", "stopped", 100, 1.0)
    late, later = trial("late", "finished", 900, 3.0), trial("later", "finished", 900, 2.0)
    gone = trial("gone", "diverged", 900, 0.5)
    assert front_of([FID], [early, late, later, gone]) == [later]
    assert front_of([FID], [early, gone]) == [early]
    assert front_of([FID], [gone]) == []
