"""PickScore: CLIP ViT-H/14 trained on which of two images people chose for a prompt.

Source: Kirstain et al., arXiv 2305.01569.
"""

from sid_ray.metrics.preference import preference_metric

SPEC = preference_metric(
    "pickscore",
    "PickScore",
    "preference of people, Pick-a-Pic",
    "hf://yuvalkirstain/PickScore_v1",
)
