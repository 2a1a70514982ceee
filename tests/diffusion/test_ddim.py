"""DDIM: exact where the answer is known, and equal to diffusers' sampler."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from sid_ray.diffusion.schedules import DiscreteVPSchedule, image_shape
from sid_ray.diffusion.solvers import ddim
from sid_ray.types import Condition, Level, Prediction, Want

STD = 0.5


def ideal(x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0) -> Prediction:
    """E[x_0 | x_t] of data N(0, STD^2)."""
    alpha, sigma = image_shape(level.alpha), image_shape(level.sigma)
    return Prediction(x0=alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x_t)


def end_of_the_flow(schedule: DiscreteVPSchedule, z: Tensor) -> Tensor:
    """What the probability flow makes of z: on it a Gaussian sample keeps x_t / std(x_t)."""
    last = schedule.level(torch.tensor([schedule.num_train_timesteps - 1]))
    return z * STD / (last.alpha**2 * STD**2 + last.sigma**2).sqrt()


def test_more_steps_come_closer_to_the_probability_flow():
    schedule, z = DiscreteVPSchedule(), torch.randn(64, 1, 2, 2, dtype=torch.float64)
    expected = end_of_the_flow(schedule, z)
    errors = [
        float((ddim(ideal, schedule, z, Condition(), n) - expected).norm() / expected.norm())
        for n in (5, 10, 20, 40, 80)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert fine < 0.65 * coarse  # first order
    assert errors[-1] < 0.05


def test_equals_diffusers():
    """On 1,001 timesteps, where diffusers' grid, a whole number apart, is ours."""
    diffusers = pytest.importorskip("diffusers")
    steps, schedule = 50, DiscreteVPSchedule(num_train_timesteps=1001)
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1001,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule,
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)

    def bent(x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0) -> Prediction:
        epsilon = (x_t + 0.1 * x_t.sin()) * image_shape(level.sigma)
        return Prediction(
            x0=(x_t - image_shape(level.sigma) * epsilon) / image_shape(level.alpha),
        )

    z = torch.randn(4, 3, 2, 2)
    x = z
    for t in range(1000, 0, -20):
        level = schedule.level(torch.full((4,), t))
        x0 = bent(x, level, Condition()).x0
        epsilon = (x - image_shape(level.alpha) * x0) / image_shape(level.sigma)
        out = scheduler.step(epsilon, t, x)
        x = out.prev_sample
    found = ddim(bent, schedule, z, Condition(), steps)
    torch.testing.assert_close(found, out.pred_original_sample, rtol=1e-4, atol=1e-4)


def test_one_step_is_the_denoised_noise():
    schedule, z = DiscreteVPSchedule(), torch.randn(2, 1, 2, 2)
    level = schedule.level(torch.full((2,), 999))
    expected = ideal(z, level, Condition()).x0
    assert torch.equal(ddim(ideal, schedule, z, Condition(), 1), expected)


def test_rescaled_levels_equal_diffusers_from_pure_noise():
    """The teacher's sampler begins at the last timestep, whose signal is 0, with v."""
    diffusers = pytest.importorskip("diffusers")
    schedule = DiscreteVPSchedule(
        num_train_timesteps=1001, prediction_type="v_prediction", rescale_zero_snr=True
    )
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1001,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(10)

    def velocity(x_t: Tensor) -> Tensor:
        return (0.3 * x_t).sin() - 0.5 * x_t

    def bent(x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0) -> Prediction:
        return Prediction(
            x0=image_shape(level.alpha) * x_t - image_shape(level.sigma) * velocity(x_t)
        )

    z = torch.randn(4, 3, 2, 2)
    x = z
    for t in range(1000, 0, -100):
        out = scheduler.step(velocity(x), t, x)
        x = out.prev_sample
    found = ddim(bent, schedule, z, Condition(), 10)
    torch.testing.assert_close(found, out.pred_original_sample, rtol=1e-4, atol=1e-4)
