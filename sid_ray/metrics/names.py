"""What a score's name says: where MLflow shows it, and which of two values is the better one.

The names are those of ``metrics/scores.py``: FD-digits-cnn, KD-Lite0, FID, IS-Lite0, precision, ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

EVAL, BEST = "eval/", "best/"
"""In MLflow a score is EVAL + NAME, its best value so far BEST + NAME: a group of charts each."""

LARGER = ("IS", "precision", "recall", "CLIP")
FRECHET = ("FD", "FID")
DEVIATION, DEAD = "_deviation", "dead_features"
BESIDE = (DEVIATION, DEAD)  # say how far to trust a score, and are none themselves
INCEPTION = "Inception"  # whose scores carry no name of a space: FID, KID, IS, ...


def bare(name: str) -> str:
    """FID of eval/FID, best/FID or FID."""
    return name.removeprefix(EVAL).removeprefix(BEST)


def larger_is_better(name: str) -> bool:
    """Of a score, with or without EVAL or BEST before it."""
    return bare(name).startswith(LARGER)


def is_frechet(name: str) -> bool:
    """Whether it is a Frechet distance: FID, FD-SPACE."""
    return bare(name).partition("-")[0] in FRECHET


def is_score(name: str) -> bool:
    """Whether one value of it is better than another; not so for deviations and dead features."""
    return not any(word in bare(name) for word in BESIDE)


def plain_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Those worth a curve: without deviations of parts and counts of dead features."""
    return {name: value for name, value in scores.items() if is_score(name)}


def shown_score(name: str, value: float) -> str:
    """As many digits as say something."""
    return f"{value:.2f}" if is_frechet(name) or bare(name).startswith("IS") else f"{value:.4g}"


def is_better(name: str, value: float, than: float | None) -> bool:
    """Whether ``value`` beats an earlier one, None for none. What is not finite never does."""
    if not math.isfinite(value):
        return False
    return than is None or (value > than if larger_is_better(name) else value < than)


def in_order(names: Iterable[str]) -> list[str]:
    """Frechet distances first, then by name."""
    return sorted(names, key=lambda name: (not is_frechet(name), name))


def shown_last(name: str) -> tuple[bool, bool, bool, str]:
    """Sorts MLflow's metrics for people: best scores, scores, Frechet distances first, the rest."""
    return not name.startswith(BEST), not name.startswith(EVAL), not is_frechet(name), name


def space_of(name: str) -> str:
    """The feature space of a score: Lite0 of FD-Lite0, Inception of FID."""
    return bare(name).partition("-")[2].removesuffix("_deviation") or INCEPTION
