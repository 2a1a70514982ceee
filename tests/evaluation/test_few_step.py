"""Few-step generation: the recursion, and one step as its special case."""

from __future__ import annotations

import torch
from torch import Tensor

from sid_ray.diffusion.schedules import EDMSchedule, image_shape
from sid_ray.evaluation.samplers import few_step
from sid_ray.types import Condition, Level, Prediction, Want


def shrink(x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0) -> Prediction:
    return Prediction(x0=x_t / (1 + image_shape(level.sigma) ** 2))


def test_edm2_steps_fall_linearly_in_sigma_with_fresh_noise():
    """y_0 = G(s0 z, s0); y_k = G(y_{k-1} + s_k eps, s_k), s_k = s0 (K - k) / K."""
    z, first, second = torch.randn(3, 2, 4, 8, 8)
    y = z * 2.5 / (1 + 2.5**2)
    for sigma, noise in ((2.5 * 2 / 3, first), (2.5 / 3, second)):
        y = (y + sigma * noise) / (1 + sigma**2)
    found = few_step(shrink, EDMSchedule(), z, Condition(), 3, (first, second))
    assert torch.allclose(found, y, atol=1e-6)


def test_one_step_is_one_evaluation():
    z, labels = torch.randn(2, 3, 8, 8), torch.eye(2)
    expected = few_step(shrink, EDMSchedule(), z, Condition(labels))
    assert torch.equal(expected, z * 2.5 / (1 + torch.tensor(2.5) ** 2))


def test_the_gradient_passes_every_step():
    z = torch.randn(1, 1, 4, 4, requires_grad=True)
    few_step(shrink, EDMSchedule(), z, Condition(), 2, [torch.randn(1, 1, 4, 4)]).sum().backward()
    factor = 2.5 / (1 + 2.5**2) / (1 + 1.25**2)
    assert torch.allclose(z.grad, torch.full_like(z, factor))
