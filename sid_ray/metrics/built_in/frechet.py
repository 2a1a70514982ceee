"""The Frechet distance of features; in FID's own network the FID."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sid_ray.metrics.spec import Evidence, MetricSpec, Score

if TYPE_CHECKING:
    from sid_ray.metrics.reference import Statistics
    from sid_ray.metrics.sums import FeatureSums

DISTANCE = Score("FD", in_inception="FID", digits="2f", leads=True)
DEAD = Score("dead_features", beside=True)


def frechet_scored(evidence: Evidence) -> dict[str, float]:
    return frechet_scores(evidence.space, evidence.made.sums, evidence.real().statistics)


def frechet_scores(space: str, made: FeatureSums, real: Statistics) -> dict[str, float]:
    """The distance, and how many of the reference's features are dead (beside which the distance
    sees only whether the made images wake them).
    """
    from sid_ray.metrics.frechet import dead_features, frechet_distance

    mean, covariance = real.mean, real.covariance
    distance = frechet_distance(made.mean, made.covariance, mean, covariance)
    dead = dead_features(mean, covariance)
    return {DISTANCE.named_in(space): distance, DEAD.named_in(space): dead}


SPEC = MetricSpec(
    "fd", "Frechet distance", (DISTANCE, DEAD), frechet_scored, frozenset({"reference statistics"})
)
