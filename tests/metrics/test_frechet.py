"""The Frechet distance against known Gaussians."""

import numpy as np
import pytest
import scipy.linalg

from sid_ray.errors import UserError
from sid_ray.metrics.frechet import dead_features, frechet_distance
from sid_ray.metrics.sums import FeatureSums


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
    assert frechet_distance(np.zeros(2), sigma, np.zeros(2), sigma) == pytest.approx(0, abs=1e-15)
    assert dead_features(np.zeros(2), sigma) == 1
    assert dead_features(np.array([0.0, 5.0]), np.diag([1.0, 1e-13])) == 1
    assert dead_features(np.ones(2), np.eye(2)) == 0


def test_fewer_samples_than_features_are_exact():
    """A singular covariance: to itself the distance is zero, and moved and scaled it is known."""
    sums = FeatureSums.of(np.random.default_rng(0).normal(size=(10, 40)))
    mean, sigma = sums.mean, sums.covariance
    assert frechet_distance(mean, sigma, mean, sigma) == pytest.approx(0, abs=1e-11)
    # sigma and 9 sigma: tr sigma + 9 tr sigma - 2 * 3 tr sigma
    expected = 40 * 0.25 + 4 * np.trace(sigma)
    assert frechet_distance(mean, sigma, mean + 0.5, 9 * sigma) == pytest.approx(
        expected, rel=1e-12
    )


def test_statistics_of_other_features_are_refused():
    with pytest.raises(UserError, match="2 and 3 features"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3))
