"""Values, points and scores as they are shown, on the console and on the report's page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sid_ray.metrics.names import shown_score
from sid_ray.sweep.space import Metric, Value


def shown(values: Iterable[Any]) -> str:
    """Values of a point or a score, as short as they can be told apart."""
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def shown_scores(metrics: Sequence[Metric], scores: Mapping[str, float]) -> str:
    """'FID 9.81, CLIP 0.301', of the metrics that there are."""
    there = [metric.name for metric in metrics if metric.name in scores]
    return ", ".join(f"{name} {shown_score(name, scores[name])}" for name in there)


def shown_point(point: Mapping[str, Value]) -> str:
    """'alpha 1.08, group_size 16'."""
    names = short_names(list(point))
    return ", ".join(f"{names[name]} {shown([value])}" for name, value in point.items())


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each field's name, all of it where two would look alike."""
    leaves = [name.rpartition(".")[2] for name in names]
    return {
        n: leaf if leaves.count(leaf) == 1 else n for n, leaf in zip(names, leaves, strict=True)
    }
