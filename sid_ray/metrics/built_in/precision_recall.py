"""Precision and recall of features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sid_ray.metrics.spec import Evidence, MetricSpec, Score

if TYPE_CHECKING:
    from sid_ray.metrics.scores import SeenBlocks

PRECISION = Score("precision", larger_is_better=True)
RECALL = Score("recall", larger_is_better=True)


def neighbour_scored(evidence: Evidence) -> dict[str, float]:
    return neighbour_scores(evidence.space, evidence.made, evidence.real().seen, evidence.device)


def neighbour_scores(
    space: str, made: SeenBlocks, real: SeenBlocks, device: str = "cpu"
) -> dict[str, float]:
    """Raises UserError where features were not kept, or are too few."""
    from sid_ray.metrics.precision_recall import precision_recall
    from sid_ray.metrics.scores import both_features

    inside = precision_recall(*both_features(made, real), device=device)
    return {PRECISION.named_in(space): inside.precision, RECALL.named_in(space): inside.recall}


SPEC = MetricSpec(
    "pr",
    "precision and recall",
    (PRECISION, RECALL),
    neighbour_scored,
    frozenset({"reference images"}),
)
