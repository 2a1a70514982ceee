"""The Frechet distance between two Gaussians fitted to features.

Symbols
    mu, sigma   mean [D] and covariance [D, D] of a feature set
    d^2 = |mu_1 - mu_2|^2 + tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureStatistics:
    """Mergeable sums of features, so that any number of actors gives one mean and covariance."""

    count: int
    total: NDArray[np.float64]  # [D]
    outer: NDArray[np.float64]  # [D, D] sum of x x^T

    @classmethod
    def of(cls, features: NDArray) -> FeatureStatistics:
        """From features [N, D]."""
        x = np.asarray(features, dtype=np.float64)
        return cls(len(x), x.sum(0), x.T @ x)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        return FeatureStatistics(
            self.count + other.count, self.total + other.total, self.outer + other.outer
        )

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.total / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """The unbiased covariance (division by N - 1)."""
        centred = self.outer - np.outer(self.total, self.total) / self.count
        return centred / (self.count - 1)


def frechet_distance(mu_1: NDArray, sigma_1: NDArray, mu_2: NDArray, sigma_2: NDArray) -> float:
    """d^2 between N(mu_1, sigma_1) and N(mu_2, sigma_2) (Dowson and Landau, 1982).

    tr (sigma_1 sigma_2)^(1/2) is the sum of the square roots of the product's eigenvalues, which
    are real and non-negative for covariances: no matrix root is needed.
    """
    eigenvalues = np.linalg.eigvals(sigma_1 @ sigma_2)
    root_trace = np.sqrt(np.clip(eigenvalues.real, 0, None)).sum()
    gap = mu_1 - mu_2
    return float(gap @ gap + np.trace(sigma_1) + np.trace(sigma_2) - 2 * root_trace)
