"""A sample that is not finite costs itself and no other: in losses, group means and gradients."""

from __future__ import annotations

import pytest
import torch

from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.types import Batch, Draw, Networks, Pick
from tests.support.networks import Fixed, LabelledNoise, some_draw, tiny_edm2, tiny_network, widened

BAD, GOOD = 2, [0, 1, 3]


def build(name: str) -> tuple[SiD, torch.nn.Module, torch.nn.Module]:
    """(objective, teacher, fake score), float64."""
    if name == "sid":
        return SiD(EDMSchedule()), *(tiny_network(seed).double() for seed in (0, 1))
    if name == "sida":
        return SiDA(EDMSchedule()), *(tiny_network(seed).double() for seed in (0, 1))
    objective = SiDA(EDMSchedule(), logvar=True, official=True)
    return objective, *(tiny_edm2(seed).double() for seed in (0, 1))


def part(values, index: list[int]):
    return type(values)(*(None if value is None else value[index] for value in values))


def images_and_inputs() -> tuple[torch.Tensor, Draw, Batch]:
    draw = widened(some_draw(4))
    batch = widened(LabelledNoise().batch(Pick(torch.linspace(0, 0.9, 4))))
    return draw.latents.flip(0), draw, batch


@pytest.mark.parametrize("phase", ["fake_loss", "generator_loss"])
@pytest.mark.parametrize("name", ["sid", "sida", "sida edm2"])
def test_a_generated_image_with_nan_counts_for_nothing(name, phase):
    objective, teacher, fake = build(name)
    teacher.requires_grad_(False)
    fake.requires_grad_(phase == "fake_loss")
    images, draw, batch = images_and_inputs()
    poisoned = images.clone()
    poisoned[BAD, 0, 3, 3] = torch.nan

    def loss_and_gradients(given, draw, batch):
        given = given.clone().requires_grad_()
        loss = getattr(objective, phase)(Networks(teacher, fake, Fixed(given)), batch, draw)
        fake.zero_grad()
        loss.total.backward()
        gradients = [p.grad for p in fake.parameters() if p.grad is not None]
        return loss, given.grad, gradients

    found, to_images, to_weights = loss_and_gradients(poisoned, draw, batch)
    expected, images_without, weights_without = loss_and_gradients(
        images[GOOD], part(draw, GOOD), part(batch, GOOD)
    )
    assert torch.allclose(found.total, expected.total, rtol=1e-12)
    assert float(found.metrics["nonfinite_samples"]) == 1
    assert float(expected.metrics["nonfinite_samples"]) == 0
    for metric, value in expected.metrics.items():
        if metric not in ("nonfinite_samples", "sid_weight", "sample_std"):
            assert torch.allclose(found.metrics[metric], value, rtol=1e-12), metric
    if phase == "generator_loss":
        assert torch.allclose(to_images[GOOD], images_without, rtol=1e-10, atol=1e-12)
        return
    assert len(to_weights) == len(weights_without) > 20
    biggest = max(float(value.norm()) for value in weights_without)
    for gradient, value in zip(to_weights, weights_without, strict=True):
        assert float((gradient - value).norm()) < 1e-12 * biggest


def test_a_real_image_with_nan_costs_the_discriminator_alone():
    objective, teacher, fake = build("sida")
    images, draw, batch = images_and_inputs()
    nets = Networks(teacher, fake, Fixed(images))
    whole = objective.fake_loss(nets, batch, draw)
    batch.images[BAD, 0, 3, 3] = torch.inf
    found = objective.fake_loss(nets, batch, draw)
    expected = objective.fake_loss(
        Networks(teacher, fake, Fixed(images[GOOD])), part(batch, GOOD), part(draw, GOOD)
    )
    assert torch.equal(found.metrics["fake_loss"], whole.metrics["fake_loss"])
    name = "discriminator_loss"
    assert torch.allclose(found.metrics[name], expected.metrics[name], rtol=1e-12)


def test_metrics_stay_finite():
    objective, teacher, fake = build("sida edm2")
    images, draw, batch = images_and_inputs()
    images[BAD] = torch.nan
    nets = Networks(teacher, fake, Fixed(images))
    for loss in (objective.fake_loss, objective.generator_loss):
        for name, value in loss(nets, batch, draw).metrics.items():
            assert value.isfinite(), name
