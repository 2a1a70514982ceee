"""HPSv2: CLIP ViT-H/14 trained on how people ranked images of a prompt.

It was published as a checkpoint of open_clip; what is read here is a conversion to Transformers'
layout.

Source: Wu et al., arXiv 2306.09341.
"""

from sid_ray.metrics.preference import preference_metric

SPEC = preference_metric(
    "hpsv2", "HPSv2", "preference of people, HPDv2", "hf://adams-story/HPSv2-hf"
)
