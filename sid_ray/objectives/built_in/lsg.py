"""SiD-LSG: SiD with guided scores, on teachers that read text."""

from __future__ import annotations

from typing import Any

from sid_ray.config.sections import ObjectiveConfig
from sid_ray.objectives.spec import ObjectiveSpec


def build_lsg(chosen: Any, schedule: Any, null_text: Any) -> Any:
    from sid_ray.objectives.sid import SiD

    return SiD.of(chosen, schedule, null_text)


def variant_of_lsg(chosen: ObjectiveConfig) -> str:
    """The guidance scale; where they differ the fake score's and the teacher's."""
    own, teacher = chosen.kappa1, chosen.kappa4
    return f"kappa {teacher:g}" if own == teacher else f"kappa {own:g}/{teacher:g}"


def settings_of_lsg(chosen: ObjectiveConfig) -> dict[str, str]:
    scales = (chosen.kappa1, chosen.kappa2, chosen.kappa3, chosen.kappa4)
    return {"guidance scales kappa 1 to 4": ", ".join(f"{scale:g}" for scale in scales)}


SPEC = ObjectiveSpec(
    "lsg",
    "SiD-LSG",
    "Score identity Distillation with long and short guidance (SiD-LSG)",
    build_lsg,
    fields=("kappa1", "kappa2", "kappa3", "kappa4", "text_dropout"),
    needs=frozenset({"text"}),
    variant=variant_of_lsg,
    settings=settings_of_lsg,
)
