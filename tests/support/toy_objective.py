"""A toy objective in one file, as a package beside sid_ray would bring it.

SiD's losses, the generator's multiplied by (1 + strength). What it shows is the way in: its own
config field, its label, what it says in tables and model cards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sid_ray.config.sections import ObjectiveConfig
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.spec import ObjectiveSpec


@dataclass(frozen=True, kw_only=True)
class ToyConfig(ObjectiveConfig):
    """SiD's fields and one more."""

    strength: float = 0.25
    """toy: the generator's loss is multiplied by 1 plus this."""
    pace: int = 1
    """toy: read by nothing, and not for sweeps."""


def build(chosen: ToyConfig, schedule, null_text) -> SiD:
    loss = SiD.of(chosen, schedule, null_text)
    return replace(loss, generator_scale=loss.generator_scale * (1 + chosen.strength))


TOY = ObjectiveSpec(
    "toy",
    "ToyLoss",
    "a toy objective, SiD with another strength",
    build,
    config=ToyConfig,
    variant=lambda chosen: f"str. {chosen.strength:g}",
    settings=lambda chosen: {"strength": f"{chosen.strength:g}"},
    not_varied={"pace": "nothing reads it"},
)
