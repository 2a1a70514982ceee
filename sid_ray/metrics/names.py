"""What a score's name says: where MLflow shows it, and which of two values is the better one.

A name is that of a ``Score`` of a metric's spec, with the feature space behind it: FD-digits-cnn,
KD-Lite0, FID, IS-Lite0, precision, ... Of a name that no spec knows, the smaller value is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from sid_ray.metrics.spec import INCEPTION, MetricSpec, Score, metric_specs

EVAL, BEST = "eval/", "best/"
"""In MLflow a score is EVAL + NAME, its best value so far BEST + NAME: a group of charts each."""

DEVIATION = "_deviation"  # behind the name of the score whose parts deviate by so much

UNKNOWN = Score("")


def bare(name: str) -> str:
    """FID of eval/FID, best/FID or FID."""
    return name.removeprefix(EVAL).removeprefix(BEST)


def measured_by(name: str) -> MetricSpec | None:
    """The metric that gives a score; None where no spec knows the name."""
    first = first_word(name)
    for spec in metric_specs():
        if any(first in (score.name, score.in_inception) for score in spec.scores):
            return spec
    return None


def score_of(name: str) -> Score:
    """What its metric's spec says of a score; UNKNOWN where no spec knows the name."""
    first, spec = first_word(name), measured_by(name)
    scores = () if spec is None else spec.scores
    return next((each for each in scores if first in (each.name, each.in_inception)), UNKNOWN)


def first_word(name: str) -> str:
    """FD of eval/FD-Lite0, KID of KID_deviation: the name without its feature space."""
    return bare(name).partition("-")[0].removesuffix(DEVIATION)


def larger_is_better(name: str) -> bool:
    """Of a score, with or without EVAL or BEST before it."""
    return score_of(name).larger_is_better


def leads(name: str) -> bool:
    """Whether it is shown before other scores, like a Frechet distance."""
    return score_of(name).leads


def is_score(name: str) -> bool:
    """Whether one value of it is better than another; not so for deviations and dead features."""
    return DEVIATION not in bare(name) and not score_of(name).beside


def plain_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Those worth a curve: without deviations of parts and counts of dead features."""
    return {name: value for name, value in scores.items() if is_score(name)}


def shown_score(name: str, value: float) -> str:
    """As many digits as say something."""
    return f"{value:.{score_of(name).digits}}"


def is_better(name: str, value: float, than: float | None) -> bool:
    """Whether ``value`` beats an earlier one, None for none. What is not finite never does."""
    if not math.isfinite(value):
        return False
    return than is None or (value > than if larger_is_better(name) else value < than)


def scores_in_order(names: Iterable[str]) -> list[str]:
    """Those that lead first, then by name."""
    return sorted(names, key=lambda name: (not leads(name), name))


def shown_last(name: str) -> tuple[bool, bool, bool, str]:
    """Sorts MLflow's metrics for people: best scores, scores, those that lead first, the rest."""
    return not name.startswith(BEST), not name.startswith(EVAL), not leads(name), name


def space_of(name: str) -> str:
    """The feature space of a score: Lite0 of FD-Lite0, Inception of FID; empty for none."""
    space = bare(name).partition("-")[2].removesuffix(DEVIATION)
    return space or (INCEPTION if score_of(name).of_space else "")
