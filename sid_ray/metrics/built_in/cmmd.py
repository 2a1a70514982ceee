"""CMMD: the kernel distance of CLIP's embeddings of made and of real images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sid_ray.config.metric_weights import weights_for
from sid_ray.config.sections import EvaluationConfig
from sid_ray.metrics.spec import Evidence, Gauge, MetricSpec, Score

if TYPE_CHECKING:
    import torch

NAME = "cmmd"
DISTANCE = Score("CMMD", of_space=False)
PUBLISHED = "hf://openai/clip-vit-large-patch14-336"


def check_embeddings(chosen: EvaluationConfig) -> None:
    weights_for(chosen, NAME, PUBLISHED)


def open_embeddings(chosen: EvaluationConfig, device: torch.device) -> Gauge:
    from sid_ray.metrics.clip import load_clip
    from sid_ray.metrics.clip_embeddings import ClipEmbeddings
    from sid_ray.metrics.transformers_folder import folder_at

    folder = folder_at(weights_for(chosen, NAME, PUBLISHED))
    return ClipEmbeddings(load_clip(folder, device, DISTANCE.name, reads_text=False))


def embeddings_scored(evidence: Evidence) -> dict[str, float]:
    import numpy as np

    from sid_ray.metrics.clip_embeddings import gaussian_discrepancy

    made = np.concatenate(list(evidence.own))
    return {DISTANCE.name: gaussian_discrepancy(made, evidence.own_of_real(), evidence.device)}


SPEC = MetricSpec(
    NAME,
    "kernel distance of CLIP embeddings",
    (DISTANCE,),
    embeddings_scored,
    frozenset({"reference images"}),
    open=open_embeddings,
    check=check_embeddings,
)
