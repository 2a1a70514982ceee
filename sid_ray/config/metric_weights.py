"""Networks that metrics bring themselves, as evaluation.metric_weights names them:
METRIC=PLACE with a comma between several.
"""

from __future__ import annotations

from collections.abc import Callable

from sid_ray.config.registry import METRICS
from sid_ray.config.sections import EvaluationConfig
from sid_ray.errors import UserError

FIELD = "evaluation.metric_weights"


def named_weights(text: str) -> dict[str, str]:
    """Places by metric. Raises UserError for anything that is not METRIC=PLACE, and for a metric
    that is unknown or named twice.
    """
    found: dict[str, str] = {}
    for part in (part.strip() for part in text.split(",") if part.strip()):
        name, _, place = (word.strip() for word in part.partition("="))
        if not name or not place:
            raise UserError(
                f"{FIELD} holds {part!r:.200}; expected METRIC=PLACE, a comma between several"
            )
        METRICS.get(name.lower())
        if name.lower() in found:
            raise UserError(f"{FIELD} names {name} twice: give each metric one place")
        found[name.lower()] = place
    return found


def with_places(text: str, changed: Callable[[str], str]) -> str:
    """The same field with every place changed. Raises UserError as ``named_weights``."""
    return ",".join(f"{name}={changed(place)}" for name, place in named_weights(text).items())


def weights_for(chosen: EvaluationConfig, metric: str, example: str) -> str:
    """Where a metric's network lies. Raises UserError, with an example, where none is named."""
    place = named_weights(chosen.metric_weights).get(metric)
    if place is None:
        raise UserError(
            f"metric {metric} needs its network: {FIELD} {metric}={example}, or a folder of that "
            "layout"
        )
    return place
