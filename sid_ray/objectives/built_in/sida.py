"""SiDA, with real images. SiD2A is the same loss from another initial generator."""

from __future__ import annotations

from typing import Any

from sid_ray.config.sections import ObjectiveConfig
from sid_ray.objectives.spec import ObjectiveSpec

OWN = ("adversarial_weight", "discriminator_weight", "generator_start", "adversarial_start")


def build_sida(chosen: Any, schedule: Any, null_text: Any) -> Any:
    from sid_ray.objectives.sida import SiDA

    own = {name: getattr(chosen, name) for name in OWN}
    return SiDA.of(chosen, schedule, null_text, **own)


def settings_of_sida(chosen: ObjectiveConfig) -> dict[str, str]:
    return {
        "adversarial weight": f"{chosen.adversarial_weight:g}",
        "discriminator weight": f"{chosen.discriminator_weight:g}",
    }


SPEC = ObjectiveSpec(
    "sida",
    "SiDA",
    "adversarial Score identity Distillation (SiDA)",
    build_sida,
    fields=OWN,
    needs=frozenset({"real images"}),
    discriminator=True,
    settings=settings_of_sida,
)
