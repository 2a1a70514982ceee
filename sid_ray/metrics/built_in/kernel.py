"""The kernel distance of features; in FID's own network the KID."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sid_ray.metrics.names import DEVIATION
from sid_ray.metrics.spec import Evidence, MetricSpec, Score

if TYPE_CHECKING:
    from sid_ray.metrics.scores import SeenBlocks

DISTANCE = Score("KD", in_inception="KID")


def kernel_scored(evidence: Evidence) -> dict[str, float]:
    return kernel_scores(evidence.space, evidence.made, evidence.real().seen)


def kernel_scores(
    space: str, made: SeenBlocks, real: SeenBlocks, subsets: int | None = None
) -> dict[str, float]:
    """The distance, and the deviation of its subsets' distances.

    ``subsets``: how many; None for as many as published. They have as many samples as there are
    where these are fewer than published. Raises UserError where features were not kept.
    """
    from sid_ray.metrics.kid import SUBSET_SIZE, SUBSETS, choose_subsets, kernel_distance
    from sid_ray.metrics.scores import both_features

    x, y = both_features(made, real)
    chosen = choose_subsets(len(x), len(y), subsets or SUBSETS, min(SUBSET_SIZE, len(x), len(y)))
    found, name = kernel_distance(x, y, chosen), DISTANCE.named_in(space)
    return {name: found.mean, f"{name}{DEVIATION}": found.deviation}


SPEC = MetricSpec(
    "kid", "kernel distance", (DISTANCE,), kernel_scored, frozenset({"reference images"})
)
