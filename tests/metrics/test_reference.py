"""Every metric against torch-fidelity and torchmetrics on the same features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sid_ray.metrics.frechet import frechet_distance
from sid_ray.metrics.inception_score import inception_score
from sid_ray.metrics.kid import kernel_distance, squared_discrepancy
from sid_ray.metrics.precision_recall import precision_recall
from sid_ray.metrics.sums import FeatureSums
from tests.metrics.made_up import made_up

KNOWN = json.loads((Path(__file__).parent.parent / "reference" / "metrics.json").read_text())
FIDELITY, TORCHMETRICS = KNOWN["torch_fidelity"], KNOWN["torchmetrics"]
SETS = {name: values.numpy() for name, values in made_up().items()}


def test_the_features_are_those_that_the_numbers_were_made_of():
    for name, expected in KNOWN["checks"].items():
        assert np.abs(SETS[name]).sum() == pytest.approx(expected, rel=1e-12)


def distance(made: str) -> float:
    ours, real = FeatureSums.of(SETS[made]), FeatureSums.of(SETS["real"])
    return frechet_distance(ours.mean, ours.covariance, real.mean, real.covariance)


def test_frechet_distance():
    assert distance("made") == pytest.approx(FIDELITY["frechet"], rel=1e-9)
    assert distance("made") == pytest.approx(TORCHMETRICS["frechet"], rel=1e-9)
    # fewer samples than features: theirs takes roots of eigenvalues that are zero but for rounding
    assert distance("few") == pytest.approx(FIDELITY["frechet_few"], rel=1e-6)


def test_kernel_distance():
    draws = np.random.RandomState(2020)
    sizes = len(SETS["made"]), len(SETS["real"])
    chosen = [tuple(draws.choice(n, 200, replace=False) for n in sizes) for _ in range(20)]
    found = kernel_distance(SETS["made"], SETS["real"], chosen)
    assert found == pytest.approx(FIDELITY["kid"], rel=1e-9)
    first = squared_discrepancy(SETS["made"][:500], SETS["real"][:500])
    assert first == pytest.approx(TORCHMETRICS["kernel_one_subset"], rel=1e-9)


def test_inception_score():
    order = np.random.RandomState(2020).permutation(len(SETS["logits"]))
    found = inception_score(SETS["logits"], order)
    assert found == pytest.approx(FIDELITY["inception_score"], rel=1e-9)
    whole = inception_score(SETS["logits"], splits=1).mean
    assert whole == pytest.approx(TORCHMETRICS["inception_score_one_split"], rel=1e-9)


@pytest.mark.parametrize("tile", [97, 128, 2048])
def test_precision_and_recall(tile):
    """Theirs are means in float32."""
    found = precision_recall(SETS["made"], SETS["real"], tile=tile)
    assert found == pytest.approx(FIDELITY["precision_recall"], rel=1e-6)
