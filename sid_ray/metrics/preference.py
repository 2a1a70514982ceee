"""Preference scores: CLIP networks that were trained on what people prefer.

The score of an image and its prompt is the cosine of their embeddings, times the scale that the
network was trained with (about 100), as in the published tables. A metric is a call:

    SPEC = preference_metric("pickscore", "PickScore", "what people prefer", "hf://OWNER/REPO")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sid_ray.config.metric_weights import weights_for
from sid_ray.config.sections import EvaluationConfig
from sid_ray.metrics.spec import Evidence, Gauge, MetricSpec, Score

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from sid_ray.metrics.clip import Clip


class Preference:
    """What a preference network gives each image."""

    def __init__(self, clip: Clip, name: str):
        self.clip, self.name = clip, name
        self.identity = f"{name}-{clip.identity}"

    def look(self, images: Tensor, texts: Sequence[str] | None) -> NDArray:
        """Of images uint8 [N, 3, H, W] and a prompt for each: [N, 1]. Raises UserError."""
        from sid_ray.metrics.clip import clip_cosines

        cosines = clip_cosines(self.clip, images, texts or [], self.name)
        return (self.clip.scale * cosines)[:, None].numpy()


def preference_metric(name: str, score: str, title: str, published: str) -> MetricSpec:
    """The spec of a preference score.

    Args:
        name: in evaluation.metrics and evaluation.metric_weights.
        score: its name in tables.
        title: in --help.
        published: address of its network, in messages.
    """
    shown = Score(score, larger_is_better=True, of_space=False)

    def check(chosen: EvaluationConfig) -> None:
        weights_for(chosen, name, published)

    def open_network(chosen: EvaluationConfig, device: torch.device) -> Gauge:
        from sid_ray.metrics.clip import load_clip
        from sid_ray.metrics.transformers_folder import folder_at

        folder = folder_at(weights_for(chosen, name, published))
        return Preference(load_clip(folder, device, score), name)

    def scored(evidence: Evidence) -> dict[str, float]:
        return {shown.name: float(evidence.own_sums.mean[0])}

    return MetricSpec(
        name,
        title,
        (shown,),
        scored,
        frozenset({"prompts"}),
        open=open_network,
        check=check,
        by_image=True,
    )
