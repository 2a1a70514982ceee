"""The formulas that SiDA adds: the coupling of a group, logits, samples that are not finite."""

from __future__ import annotations

import pytest
import torch

from sid_ray.objectives.functional import (
    adversarial_value,
    discriminator_value,
    finite_samples,
    group_product,
    only,
    uncertain,
)
from sid_ray.types import GroupSums


def group(count: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weights, values, finite), float64, the first two with gradients."""
    rng = torch.Generator().manual_seed(seed)
    weight, value = torch.rand(2, count, generator=rng, dtype=torch.float64).unbind(0)
    finite = torch.ones(count, dtype=torch.float64)
    return weight.clone().requires_grad_(), value.clone().requires_grad_(), finite


def sums_of(weight, value, finite) -> GroupSums:
    return GroupSums(*(part.detach().sum() for part in (weight, value, finite)))


def test_a_group_is_the_sum_of_weights_times_the_mean_of_values():
    weight, value, finite = group()
    found = group_product(weight, value, finite, 6, None)
    assert torch.allclose(found, weight.sum() * value.mean())
    found.backward()
    assert torch.allclose(weight.grad, value.mean().expand(6))
    assert torch.allclose(value.grad, (weight.sum() / 6).expand(6))


def test_several_groups_add_up():
    weight, value, finite = group()
    pairs = zip(weight.split(2), value.split(2), strict=True)
    expected = sum(w.sum() * v.mean() for w, v in pairs)
    assert torch.allclose(group_product(weight, value, finite, 2, None), expected)


@pytest.mark.parametrize("part", [1, 2, 3])
@pytest.mark.parametrize("bad", [(), (1,), (0, 1, 5)])
def test_parts_of_a_group_add_up_in_value_and_gradient(part, bad):
    """Both factors carry gradients: the product rule must survive the split."""
    weight, value, finite = group()
    finite[list(bad)] = 0
    mask = finite.bool()
    inputs = (only(finite, weight), only(finite, value), finite)
    whole = group_product(*inputs, 6, None)
    assert torch.allclose(whole, weight[mask].sum() * value[mask].mean())
    expected = torch.autograd.grad(whole, (weight, value), retain_graph=True)
    sums = sums_of(*inputs)
    chunks = zip(*(tensor.split(part) for tensor in inputs), strict=True)
    parts = [group_product(*chunk, 6, sums) for chunk in chunks]
    total = torch.stack(parts).sum()
    assert torch.allclose(total, whole, rtol=1e-14)
    for found, gradient in zip(torch.autograd.grad(total, (weight, value)), expected, strict=True):
        assert torch.allclose(found, gradient, rtol=1e-14)
        assert not found[~mask].any()


def test_a_group_without_any_finite_sample_is_zero():
    none = torch.zeros(2, dtype=torch.float64)
    for split in (False, True):
        weight, value, _ = group(2)
        inputs = (only(none, weight), only(none, value), none)
        found = group_product(*inputs, 2, sums_of(*inputs) if split else None)
        assert float(found.detach()) == 0
        assert not any(g.any() for g in torch.autograd.grad(found, (weight, value)))


@pytest.mark.parametrize("value", [adversarial_value, discriminator_value])
def test_gradients_of_logit_losses_equal_finite_differences(value):
    rng = torch.Generator().manual_seed(0)
    shape = (2, 3, 1, 4, 4) if value is discriminator_value else (1, 3, 1, 4, 4)
    logits = 4 * torch.randn(shape, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: value(*x.unbind(0)), logits.requires_grad_())


def test_values_of_logit_losses():
    """Binary cross-entropy in its textbook form, mean over each sample's positions."""
    real, fake = torch.tensor([[[[2.0, -1.0]]], [[[0.0, 0.0]]]], dtype=torch.float64).unbind(0)
    real, fake = real[None], fake[None]

    def bce(logits: torch.Tensor, target: float) -> torch.Tensor:
        p = 1 / (1 + torch.exp(-logits))
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean()

    expected = (bce(real, 1) + bce(fake, 0)) / 2
    assert torch.allclose(discriminator_value(real, fake), expected[None])
    assert torch.allclose(adversarial_value(real), bce(real, 1)[None])


def test_the_generators_side_is_flat_beyond_ten():
    logits = torch.tensor([-30.0, -10.5, -9.5, 9.5, 10.5, 30.0], dtype=torch.float64)
    logits = logits.reshape(6, 1, 1, 1).requires_grad_()
    adversarial_value(logits).sum().backward()
    assert (logits.grad.flatten() != 0).tolist() == [False, False, True, True, False, False]
    logits.grad = None
    discriminator_value(logits, logits.detach()).sum().backward()
    assert (logits.grad != 0).all(), "the discriminator's side is not"


def test_uncertain_has_the_closed_form():
    """loss / e^u + u over all elements: smallest where e^u is the mean loss."""
    rng = torch.Generator().manual_seed(0)
    loss = torch.rand(2, 1, 3, 3, generator=rng, dtype=torch.float64)
    u = loss.mean((1, 2, 3)).log().requires_grad_()
    found = uncertain(loss, u)
    assert torch.allclose(found.sum((1, 2, 3)), 9 * (1 + u))
    found.sum().backward()
    assert torch.allclose(u.grad, torch.zeros(2, dtype=torch.float64), atol=1e-12)


def test_only_finite_samples_are_left():
    images = torch.ones(4, 1, 2, 2)
    images[1, 0, 0, 0], images[2, 0, 1, 1] = torch.nan, -torch.inf
    logits = torch.zeros(4)
    logits[3] = torch.inf
    finite = finite_samples(images, logits)
    assert finite.tolist() == [1, 0, 0, 0]
    assert only(finite, images).sum() == 4
