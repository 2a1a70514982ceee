"""Where a score stands in MLflow, and which way is better."""

import math

import pytest

from sid_ray.metrics import scores
from sid_ray.metrics.names import (
    in_order,
    is_better,
    is_frechet,
    is_score,
    larger_is_better,
    space_of,
)


@pytest.mark.parametrize("prefix", ["", "eval/", "best/"])
@pytest.mark.parametrize("space", ["Lite0", "Inception", "digits-cnn"])
def test_the_names_that_scores_are_given_have_the_direction_of_what_they_measure(space, prefix):
    for metric, larger in (("FD", False), ("KD", False), ("IS", True), ("precision", True),
                           ("recall", True)):  # fmt: skip
        name = prefix + scores.name_in(space, metric)
        assert larger_is_better(name) is larger
        assert is_frechet(name) is (metric == "FD")
        assert is_score(name) and not is_score(f"{name}_deviation")
        assert space_of(name) == space
    assert not is_score(prefix + scores.name_in(space, "dead_features"))
    assert larger_is_better(f"{prefix}CLIP")


def test_what_is_not_finite_is_never_better():
    for name in ("FID", "IS"):
        for value in (math.nan, math.inf, -math.inf):
            assert not is_better(name, value, None) and not is_better(name, value, 1.0)
        assert is_better(name, 1.0, None) and not is_better(name, 1.0, 1.0)
    assert is_better("FID", 0.5, 1.0) and not is_better("FID", 1.5, 1.0)
    assert is_better("IS", 1.5, 1.0) and not is_better("IS", 0.5, 1.0)


def test_frechet_distances_come_first():
    names = ["eval/CLIP", "eval/KD-a", "eval/FID", "eval/FD-a"]
    assert in_order(names) == ["eval/FD-a", "eval/FID", "eval/CLIP", "eval/KD-a"]
