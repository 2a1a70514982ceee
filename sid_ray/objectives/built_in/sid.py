"""SiD, without real images."""

from __future__ import annotations

from typing import Any

from sid_ray.objectives.spec import ObjectiveSpec


def build_sid(chosen: Any, schedule: Any, null_text: Any) -> Any:
    from sid_ray.objectives.sid import SiD

    return SiD.of(chosen, schedule, null_text)


SPEC = ObjectiveSpec(
    "sid", "SiD", "Score identity Distillation (SiD), without real images", build_sid
)
