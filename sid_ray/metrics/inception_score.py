"""Inception Score: exp of the mean divergence of p(class | image) from p(class), over splits.

It asks whether a classifier is sure of every image and finds all classes; it never looks at real
images. From 1 (all images alike to the classifier) to the number of classes.

Source: Salimans et al., arXiv 1606.03498.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sid_ray.diffusion.rng import EVALUATION, generator_for
from sid_ray.errors import UserError
from sid_ray.metrics.kid import Indices, MeanAndDeviation

SPLITS = 10
ORDER_KEY = 1002


def shuffled_order(count: int, seed: int = 0) -> Indices:
    """A permutation of the samples: neighbours may share a class, and splits must not."""
    return torch.randperm(count, generator=generator_for(seed, EVALUATION, ORDER_KEY)).numpy()


def inception_score(
    logits: NDArray, order: Indices | None = None, splits: int = SPLITS
) -> MeanAndDeviation:
    """Mean and deviation over splits of logits [N, classes] taken in ``order`` (or as they are).

    Raises UserError for fewer samples than splits.
    """
    count = len(logits)
    if count < splits:
        raise UserError(
            f"{splits} splits for the Inception Score, but only {count} samples: evaluate more "
            "images or take fewer splits"
        )
    ordered = torch.from_numpy(logits if order is None else logits[order]).double()
    log_p = ordered.log_softmax(1)
    scores = []
    for split in range(splits):
        part = log_p[split * count // splits : (split + 1) * count // splits]
        # log of the mean of p, so that a class no image has stays finite
        log_mean = part.logsumexp(0) - float(np.log(len(part)))
        scores.append(float((part.exp() * (part - log_mean)).sum(1).mean().exp()))
    return MeanAndDeviation(float(np.mean(scores)), float(np.std(scores)))
