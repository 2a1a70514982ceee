"""The Frechet distance between two Gaussians fitted to features.

Symbols
    mu, sigma   mean [D] and covariance [D, D] of a feature set
    d^2 = |mu_1 - mu_2|^2 + tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2))

Source: Dowson and Landau, 1982; Heusel et al., arXiv 1706.08500 (its use for images).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sid_ray.errors import UserError
from sid_ray.metrics.sums import FeatureSums

FeatureStatistics = FeatureSums
"""The name that those who only want a mean and a covariance know it by."""


def square_root(sigma: NDArray) -> NDArray[np.float64]:
    """A [D, D] with A A^T = sigma, a covariance. Eigenvalues below zero are rounding: zero."""
    values, vectors = np.linalg.eigh(np.asarray(sigma, np.float64))
    return vectors * np.sqrt(np.clip(values, 0, None))


def frechet_distance(mu_1: NDArray, sigma_1: NDArray, mu_2: NDArray, sigma_2: NDArray) -> float:
    """d^2 between N(mu_1, sigma_1) and N(mu_2, sigma_2).

    With sigma = A A^T, the eigenvalues of sigma_1 sigma_2 are the squared singular values of
    A_1^T A_2, so tr (sigma_1 sigma_2)^(1/2) is the sum of these singular values. They are exact to
    rounding where features are dead or fewer samples than features were seen; the square roots of
    eigenvalues, which most code takes, are there only exact to the root of rounding.

    A feature that is dead (constant) in both sets adds only its squared gap, and one that is dead
    in one set adds its variance in the other; ``dead_features`` counts them. Raises UserError for
    statistics of unlike sizes.
    """
    if mu_1.shape != mu_2.shape or sigma_1.shape != sigma_2.shape:
        raise UserError(
            f"statistics of {mu_1.shape[0]} and {mu_2.shape[0]} features cannot be compared: "
            "use the same extractor for both"
        )
    gap = mu_1 - mu_2
    roots = np.linalg.svd(square_root(sigma_1).T @ square_root(sigma_2), compute_uv=False)
    return float(gap @ gap + np.trace(sigma_1) + np.trace(sigma_2) - 2 * roots.sum())


def dead_features(mean: NDArray, sigma: NDArray) -> int:
    """How many features vary by no more than rounding: a set of few or equal images, or a network
    whose units are off. A distance says nothing about what such features would see.
    """
    variance = np.diagonal(sigma)
    return int((variance <= 1e-12 * (variance.max(initial=0) + np.square(mean))).sum())
