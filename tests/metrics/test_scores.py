"""From images to named scores: all of them, ordered as an eye does, equal for any actors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sid_ray.data.digits import load_digits
from sid_ray.diffusion.rng import generator_for
from sid_ray.errors import UserError
from sid_ray.metrics.built_in import frechet
from sid_ray.metrics.built_in.frechet import frechet_scores
from sid_ray.metrics.built_in.inception_score import class_scores
from sid_ray.metrics.built_in.kernel import kernel_scores
from sid_ray.metrics.built_in.precision_recall import neighbour_scores
from sid_ray.metrics.extractors import load_extractor
from sid_ray.metrics.features import load_feature_space
from sid_ray.metrics.reference import Statistics
from sid_ray.metrics.scores import SeenBlocks, as_seen, combined, features_of
from sid_ray.metrics.spec import metric_specs
from sid_ray.metrics.sums import BLOCK

SUBSETS = 5


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return ((load_digits()[0] + 1) * 127.5).round().to(torch.uint8)


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits-cnn")


def score(extractor, made: SeenBlocks, real: SeenBlocks) -> dict[str, float]:
    return scores(extractor.space, made, Statistics.of(real.sums, extractor.identity), real)


def scores(
    space: str, made: SeenBlocks, reference: Statistics, real: SeenBlocks
) -> dict[str, float]:
    """Of all metrics of features."""
    return {
        **frechet_scores(space, made.sums, reference),
        **class_scores(space, made),
        **kernel_scores(space, made, real, SUBSETS),
        **neighbour_scores(space, made, real),
    }


def seen_in(extractor, images: Tensor, block: int, keep: bool = True) -> SeenBlocks:
    features, logits = features_of(extractor, images)
    return as_seen(features, logits if keep else None, block, keep)


def seen_in_all(extractor, images: Tensor, keep: bool = True) -> SeenBlocks:
    parts = enumerate(images.split(BLOCK))
    return combined(seen_in(extractor, part, block, keep) for block, part in parts)


def damaged(images: Tensor, strength: float) -> Tensor:
    noise = strength * torch.randn(images.shape, generator=generator_for(0, 0))
    return (images + noise).clamp(0, 255).to(torch.uint8)


def test_scores_order_images_as_an_eye_does(digits, extractor):
    real = seen_in_all(extractor, digits[::2])
    rest = digits[1::2]
    sets = [rest, damaged(rest, 20), damaged(rest, 80)]
    found = [score(extractor, seen_in_all(extractor, images), real) for images in sets]
    assert set(found[0]) == {
        "FD-digits-cnn", "dead_features-digits-cnn", "KD-digits-cnn", "KD-digits-cnn_deviation",
        "IS-digits-cnn", "IS-digits-cnn_deviation", "precision-digits-cnn", "recall-digits-cnn",
    }  # fmt: skip
    for name, sign in (("FD", 1), ("KD", 1), ("precision", -1), ("recall", -1), ("IS", -1)):
        values = [sign * each[f"{name}-digits-cnn"] for each in found]
        assert values == sorted(values), name
    assert 9 < found[0]["IS-digits-cnn"] <= 10
    # half of the digits against the other half: one distribution, but for chance
    assert abs(found[0]["KD-digits-cnn"]) < 0.05 * found[2]["KD-digits-cnn"]
    one_class = seen_in_all(extractor, digits[load_digits()[1] == 3])
    missing = scores("x", one_class, Statistics.of(real.sums, ""), real)
    assert missing["recall-x"] < 0.3 < 0.6 < missing["precision-x"]
    assert missing["IS-x"] < 1.5


@pytest.mark.parametrize("actors", [1, 2, 5])
def test_any_number_of_actors_gives_the_same_scores(digits, extractor, actors):
    real = seen_in_all(extractor, digits)
    made = damaged(digits, 40)
    blocks = list(enumerate(made.split(BLOCK)))
    shares = [
        combined(seen_in(extractor, images, block) for block, images in blocks[actor::actors])
        for actor in range(actors)
    ]
    once = score(extractor, seen_in_all(extractor, made), real)
    assert score(extractor, combined(reversed(shares)), real) == once


def test_sums_alone_give_the_frechet_distance(digits, extractor):
    real = seen_in_all(extractor, digits, keep=False)
    made = seen_in_all(extractor, damaged(digits, 40), keep=False)
    reference = Statistics.of(real.sums, extractor.identity)
    found = frechet_scores(extractor.space, made.sums, reference)
    assert found["FD-digits-cnn"] > 0
    assert class_scores(extractor.space, made) == {}
    for of_samples in (kernel_scores, neighbour_scores):
        with pytest.raises(UserError, match="need the features"):
            of_samples(extractor.space, made, real)


def test_the_same_distance_as_the_feature_space(digits, extractor):
    """Images as bytes and images as numbers are the same here, so the distances agree."""
    space, images = load_feature_space("digits-cnn"), damaged(digits, 40)
    reference = Statistics(space.mean, space.covariance)
    made = seen_in_all(extractor, images, keep=False)
    found = frechet_scores("digits", made.sums, reference)
    assert found["FD-digits"] == pytest.approx(space.frechet_distance(images / 127.5 - 1), rel=1e-6)


def test_only_inceptions_distance_is_called_fid():
    named = {spec.name: spec.scores[0].named_in("Inception") for spec in metric_specs()}
    in_space = {"fd": "FID", "kid": "KID", "is": "IS", "pr": "precision"}
    own = {"clip": "CLIP", "pickscore": "PickScore", "hpsv2": "HPSv2", "cmmd": "CMMD"}
    assert named == in_space | own
    assert frechet.DISTANCE.named_in("Lite0") == "FD-Lite0"
