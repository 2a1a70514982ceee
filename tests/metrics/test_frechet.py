"""The Frechet distance against known Gaussians, and sums that merge."""

import numpy as np
import pytest
import scipy.linalg

from sid_ray.metrics.frechet import FeatureStatistics, frechet_distance


def random_covariance(rng, size: int) -> np.ndarray:
    root = rng.normal(size=(size, size))
    return root @ root.T / size


def test_known_gaussians():
    eye = np.eye(3)
    assert frechet_distance(np.zeros(3), eye, np.zeros(3), eye) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(np.zeros(3), eye, np.full(3, 2.0), eye) == pytest.approx(12)
    # |mu|^2 + sum (s_1 - s_2)^2 for diagonal covariances s^2
    found = frechet_distance(np.zeros(2), np.diag([1.0, 4.0]), np.ones(2), np.diag([9.0, 16.0]))
    assert found == pytest.approx(2 + 4 + 4)


def test_equals_the_matrix_square_root():
    rng = np.random.default_rng(0)
    mu_1, mu_2 = rng.normal(size=(2, 12))
    sigma_1, sigma_2 = random_covariance(rng, 12), random_covariance(rng, 12)
    root = scipy.linalg.sqrtm(sigma_1 @ sigma_2).real
    expected = ((mu_1 - mu_2) ** 2).sum() + np.trace(sigma_1 + sigma_2 - 2 * root)
    assert frechet_distance(mu_1, sigma_1, mu_2, sigma_2) == pytest.approx(expected, rel=1e-9)


def test_dead_features_do_no_harm():
    sigma = np.diag([1.0, 0.0])
    assert frechet_distance(np.zeros(2), sigma, np.zeros(2), sigma) == pytest.approx(0, abs=1e-9)


def test_merged_sums_equal_one_pass():
    features = np.random.default_rng(0).normal(size=(100, 5)) + 3
    parts = [FeatureStatistics.of(features[i::3]) for i in range(3)]
    merged = parts[0] + parts[1] + parts[2]
    assert merged.count == 100
    np.testing.assert_allclose(merged.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(features.T), rtol=1e-9)
