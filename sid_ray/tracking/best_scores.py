"""The best value of each score, and after how many images it was."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sid_ray.metrics.names import BEST, is_better, is_score

Values = Mapping[str, tuple[float, int]]
"""Score's name: (value, images seen)."""


class BestScores:
    """Over all starts of a run, each score in its own direction."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, int]] = {}

    def see(self, scores: Mapping[str, float], images_seen: int) -> frozenset[str]:
        """Takes scores in. Returns the names of those whose best value is the one at images_seen.

        What a resumed run repeats gets the answer of the first time, unless a better one came
        after it; a tie with another number of images is not a best one.
        """
        for name, value in scores.items():
            if is_score(name) and is_better(name, value, self._value(name)):
                self._found[name] = value, images_seen
        return frozenset(
            name
            for name, value in scores.items()
            if math.isfinite(value) and self._found.get(name, (0.0, -1))[1] == images_seen
        )

    def learn(self, best: Values) -> None:
        """Takes in best values of elsewhere; of two equal ones the earlier counts."""
        for name, (value, images_seen) in best.items():
            there = self._found.get(name)
            earlier = there is not None and there[0] == value and images_seen < there[1]
            if earlier or is_better(name, value, self._value(name)):
                self._found[name] = value, images_seen

    def told(self) -> dict[str, float]:
        """best/NAME of each score that has a finite value."""
        return {BEST + name: value for name, (value, _) in self._found.items()}

    def _value(self, name: str) -> float | None:
        return self._found[name][0] if name in self._found else None
