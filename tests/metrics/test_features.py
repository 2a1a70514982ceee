"""A feature space must order real, damaged, collapsed and mislabelled images as an eye does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sid_ray.data.digits import load_digits
from sid_ray.data.emoji import load_emoji
from sid_ray.diffusion.rng import generator_for
from sid_ray.errors import UserError
from sid_ray.metrics.features import SPACES, load_feature_space

DATA = {
    "digits-cnn": load_digits,
    "emoji-cnn": lambda: (load_emoji().images, load_emoji().categories),
}


@pytest.mark.parametrize("name", SPACES)
def test_its_own_reference_is_at_distance_zero(name):
    images, classes = DATA[name]()
    space = load_feature_space(name)
    assert space.frechet_distance(images) == pytest.approx(0, abs=1e-4)
    assert space.class_accuracy(images, classes) > 0.97


@pytest.mark.parametrize("name", SPACES)
def test_more_damage_is_further_away(name):
    images, _ = DATA[name]()
    space = load_feature_space(name)
    noise = torch.randn(images.shape, generator=generator_for(0, 0))
    blurred = [
        F.interpolate(F.avg_pool2d(images, side), scale_factor=float(side)) for side in (2, 4)
    ]
    for damaged in (
        [images + strength * noise for strength in (0.1, 1)],
        blurred,
        [images[::2], images[:100], images[:1].expand(100, -1, -1, -1)],
        [images, images.mean(0, keepdim=True).lerp(images, 0.5)],
    ):
        distances = [space.frechet_distance(each) for each in damaged]
        assert distances == sorted(distances)
        assert distances[-1] > 3 * max(distances[0], 0.1)


@pytest.mark.parametrize("name", SPACES)
def test_other_classes_are_found_out(name):
    images, classes = DATA[name]()
    space = load_feature_space(name)
    wrong = (classes + 1) % 10
    assert space.class_accuracy(images, wrong) < 0.03
    half = torch.where(torch.arange(len(images)) % 2 == 0, classes, wrong)
    assert space.class_accuracy(images, half) == pytest.approx(0.5, abs=0.02)


def test_no_emoji_feature_is_dead():
    """A feature that is the same for all images makes distances depend on rounding."""
    assert load_feature_space("emoji-cnn").covariance.diagonal().min() > 1e-3


def test_an_unknown_space_is_refused():
    with pytest.raises(UserError, match=r"unknown feature space 'emoji-cn'.*emoji-cnn"):
        load_feature_space("emoji-cn")
