"""The Inception Score, by a feature network that tells classes apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sid_ray.metrics.names import DEVIATION
from sid_ray.metrics.spec import Evidence, MetricSpec, Score

if TYPE_CHECKING:
    from sid_ray.metrics.scores import SeenBlocks

SCORE = Score("IS", larger_is_better=True, digits="2f")


def class_scored(evidence: Evidence) -> dict[str, float]:
    return class_scores(evidence.space, evidence.made)


def class_scores(space: str, made: SeenBlocks) -> dict[str, float]:
    """The score, and the deviation of its splits' scores; empty where there are no logits."""
    from sid_ray.metrics.inception_score import inception_score, shuffled_order

    if made.logits is None:
        return {}
    logits = made.logits.array()
    found = inception_score(logits, shuffled_order(len(logits)))
    name = SCORE.named_in(space)
    return {name: found.mean, f"{name}{DEVIATION}": found.deviation}


SPEC = MetricSpec("is", "Inception Score", (SCORE,), class_scored, frozenset({"classes"}))
