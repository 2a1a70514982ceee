"""CLIP's embeddings of images, and the kernel distance of two sets of them.

Symbols
    x_i, y_j   embeddings of made and of real images, of length 1
    k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10
    CMMD = 1000 (mean_{i, j} k(x_i, x_j) + mean_{i, j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j))

The means are over all pairs, an image with itself among them: the estimator of the least variance,
slightly above the unbiased one. Since |x - y| is at most 2, all values of the kernel lie between
0.98 and 1: what is summed here is k - 1, whose ones cancel, in float64.

Source: Jayasumana et al., arXiv 2401.09603 (sigma, the factor, CLIP ViT-L/14 at 336 pixels);
Gretton et al., JMLR 13 (2012), equation 5 (the estimator).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sid_ray.metrics.clip import BATCH, Clip, checked_images

SIGMA, FACTOR = 10.0, 1000.0
ROWS = 1024  # of a kernel's matrix at once


class ClipEmbeddings:
    """Embeddings of images, each of length 1."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self.identity = f"embeddings-{clip.identity}"

    @torch.no_grad()
    def look(self, images: Tensor, texts: Sequence[str] | None) -> NDArray:
        """Of images uint8 [N, 3, H, W], or grey ones: [N, D]. Raises UserError."""
        parts = checked_images(images, "CLIP's embeddings").split(BATCH)
        found = torch.cat([self.clip.seen(part) for part in parts])
        return F.normalize(found.float(), dim=1).cpu().numpy()


def gaussian_discrepancy(made: NDArray, real: NDArray, device: str = "cpu") -> float:
    """CMMD of embeddings [N, D] and [M, D]."""
    x, y = (torch.from_numpy(each).to(device).double() for each in (made, real))
    found = mean_beyond_one(x, x) + mean_beyond_one(y, y) - 2 * mean_beyond_one(x, y)
    return FACTOR * float(found)


def mean_beyond_one(x: Tensor, y: Tensor) -> Tensor:
    """The mean of k(x, y) - 1 over all pairs of [N, D] and [M, D]."""
    total, lengths = x.new_zeros(()), y.square().sum(1)
    for rows in x.split(ROWS):
        squared = (rows.square().sum(1)[:, None] + lengths - 2 * rows @ y.T).clamp_min(0)
        total += torch.expm1(squared / (-2 * SIGMA**2)).sum()
    return total / (len(x) * len(y))
