"""Where a score stands in MLflow, and which way is better."""

import math

import pytest

from sid_ray.metrics.built_in import frechet, inception_score, kernel, precision_recall
from sid_ray.metrics.names import (
    is_better,
    is_score,
    larger_is_better,
    leads,
    scores_in_order,
    space_of,
)


@pytest.mark.parametrize("prefix", ["", "eval/", "best/"])
@pytest.mark.parametrize("space", ["Lite0", "Inception", "digits-cnn"])
def test_the_names_that_scores_are_given_have_the_direction_of_what_they_measure(space, prefix):
    for score, larger in (
        (frechet.DISTANCE, False),
        (kernel.DISTANCE, False),
        (inception_score.SCORE, True),
        (precision_recall.PRECISION, True),
        (precision_recall.RECALL, True),
    ):
        name = prefix + score.named_in(space)
        assert larger_is_better(name) is larger
        assert leads(name) is (score is frechet.DISTANCE)
        assert is_score(name) and not is_score(f"{name}_deviation")
        assert space_of(name) == space
    assert not is_score(prefix + frechet.DEAD.named_in(space))
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
    assert scores_in_order(names) == ["eval/FD-a", "eval/FID", "eval/CLIP", "eval/KD-a"]
