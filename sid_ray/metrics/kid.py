"""Kernel distance (KID): squared maximum mean discrepancy of features, a mean over subsets.

Symbols
    k(x, y) = (gamma <x, y> + 1)^3, gamma = 1 / D
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

The estimate is unbiased, so it may be slightly below zero, and it does not depend on the number of
samples as a Frechet distance does: the one to read below some thousand images.

Source: Binkowski et al., arXiv 1801.01401.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sid_ray.diffusion.rng import EVALUATION, generator_for
from sid_ray.errors import UserError

SUBSETS, SUBSET_SIZE = 100, 1000
# What an evaluation draws beside latents, permanent as every key of a stream.
SUBSET_KEY = 1001

Indices = NDArray[np.int64]


class MeanAndDeviation(NamedTuple):
    """Over subsets or splits; the deviation is that of the parts (division by their number)."""

    mean: float
    deviation: float


def choose_subsets(
    count_1: int, count_2: int, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = 0
) -> Iterator[tuple[Indices, Indices]]:
    """Which samples of either set each subset takes, without repetition; a function of the seed.

    Raises UserError for a set smaller than ``size``.
    """
    if min(count_1, count_2) < size:
        raise UserError(
            f"subsets of {size} for the kernel distance, but only {min(count_1, count_2)} samples: "
            "evaluate more images or take smaller subsets"
        )
    for subset in range(subsets):
        rng = generator_for(seed, EVALUATION, SUBSET_KEY, subset)
        yield (
            torch.randperm(count_1, generator=rng)[:size].numpy(),
            torch.randperm(count_2, generator=rng)[:size].numpy(),
        )


def polynomial_kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, D], [M, D] -> [N, M]."""
    kernel = x @ y.T / x.shape[1] + 1
    return kernel * kernel * kernel


def squared_discrepancy(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The unbiased MMD^2 of two sets [N, D] and [M, D]."""

    def within(z: NDArray[np.float64]) -> float:
        kernel = polynomial_kernel(z, z)
        return (kernel.sum() - np.trace(kernel)) / (len(z) * (len(z) - 1))

    return float(within(x) + within(y) - 2 * polynomial_kernel(x, y).mean())


def kernel_distance(
    features_1: NDArray, features_2: NDArray, chosen: Iterable[tuple[Indices, Indices]]
) -> MeanAndDeviation:
    """KID of features [N, D] and [M, D] over the chosen subsets; sums in float64."""
    found = [
        squared_discrepancy(features_1[i].astype(np.float64), features_2[j].astype(np.float64))
        for i, j in chosen
    ]
    return MeanAndDeviation(float(np.mean(found)), float(np.std(found)))
