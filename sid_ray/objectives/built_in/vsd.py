"""Variational score distillation, the baseline; guided where the config says so."""

from __future__ import annotations

from typing import Any

from sid_ray.config.sections import ObjectiveConfig
from sid_ray.objectives.spec import ObjectiveSpec


def build_vsd(chosen: Any, schedule: Any, null_text: Any) -> Any:
    from sid_ray.objectives.vsd import VSD

    return VSD.of(chosen, schedule, null_text)


def variant_of_vsd(chosen: ObjectiveConfig) -> str:
    """Alpha has no part in its loss."""
    return "-"


SPEC = ObjectiveSpec(
    "vsd",
    "VSD",
    "variational score distillation (VSD), a baseline",
    build_vsd,
    fields=("kappa1", "kappa2", "kappa3", "kappa4", "text_dropout"),
    variant=variant_of_vsd,
)
