"""The CLIP score: how well images fit their prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sid_ray.config.sections import EvaluationConfig
from sid_ray.errors import UserError
from sid_ray.metrics.spec import Evidence, Gauge, MetricSpec, Score

if TYPE_CHECKING:
    import torch

SCORE = Score("CLIP", larger_is_better=True, of_space=False)


def check_clip(chosen: EvaluationConfig) -> None:
    if not chosen.clip_weights:
        raise UserError(
            "metric clip needs evaluation.clip_weights: a CLIP network in Transformers' layout, a "
            "folder or hf://OWNER/REPO"
        )


def open_clip(chosen: EvaluationConfig, device: torch.device) -> Gauge:
    from sid_ray.metrics.clip import load_clip
    from sid_ray.metrics.transformers_folder import folder_at

    return load_clip(folder_at(chosen.clip_weights), device)


def clip_scored(evidence: Evidence) -> dict[str, float]:
    from sid_ray.metrics.clip import clip_score

    return {SCORE.name: clip_score(evidence.own_sums)}


SPEC = MetricSpec(
    "clip",
    "fit of image and prompt",
    (SCORE,),
    clip_scored,
    frozenset({"prompts"}),
    open=open_clip,
    check=check_clip,
    by_image=True,
)
