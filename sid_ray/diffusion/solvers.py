"""From noise to images with a teacher, in many evaluations.

Symbols
    sigma_i  noise level of step i       x_i  sample at that level      D  denoiser
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from sid_ray.diffusion.flow import FlowSchedule, shifted
from sid_ray.diffusion.schedules import DiscreteVPSchedule, EDMSchedule, image_shape
from sid_ray.types import Condition, Denoiser


def heun(
    net: Denoiser,
    schedule: EDMSchedule,
    latents: Tensor,
    cond: Condition,
    num_steps: int = 18,
) -> Tensor:
    """EDM's deterministic second-order sampler: 2 * num_steps - 1 evaluations.

    Source: EDM (arXiv:2206.00364), algorithm 1 with S_churn = 0 and the rho grid of equation 5.
    """
    grid = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    sigmas = torch.cat([schedule.sigma_at(grid), torch.zeros(1, dtype=torch.float64)])
    last = len(sigmas) - 2  # the step to sigma 0, which has no second evaluation
    sigmas = sigmas.to(latents.device)

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        level = schedule.level(sigma.to(latents.dtype).expand(len(x)))
        denoised = net(x.to(latents.dtype), level, cond).x0
        assert denoised is not None
        return (x - denoised.to(x.dtype)) / sigma

    x = latents.double() * sigmas[0]
    for step, (here, there) in enumerate(itertools.pairwise(sigmas)):
        d = slope(x, here)
        x_next = x + (there - here) * d
        if step < last:
            x_next = x + (there - here) * (d + slope(x_next, there)) / 2
        x = x_next
    return x.to(latents.dtype)


def ddim(
    net: Denoiser,
    schedule: DiscreteVPSchedule,
    latents: Tensor,
    cond: Condition,
    num_steps: int,
) -> Tensor:
    """A VP teacher's deterministic sampler: num_steps evaluations. [B, C, H, W] -> [B, C, H, W].

    From pure noise at the last timestep, over timesteps evenly apart; the last x_0 is the image.
    Source: DDIM (arXiv:2010.02502), equation 12 with sigma_t = 0.
    """
    x = latents
    grid = torch.linspace(schedule.num_train_timesteps - 1, 0, num_steps + 1).round().long()
    for here, there in itertools.pairwise(grid.tolist()):
        level = schedule.level(torch.full((len(x),), here, device=x.device), x.dtype)
        x0 = net(x, level, cond).x0
        assert x0 is not None
        noise = (x - image_shape(level.alpha) * x0) / image_shape(level.sigma)
        if there == 0:
            return x0
        level = schedule.level(torch.full((len(x),), there, device=x.device), x.dtype)
        x = schedule.add_noise(x0, noise, level)
    return x


def euler(
    net: Denoiser,
    schedule: FlowSchedule,
    latents: Tensor,
    cond: Condition,
    num_steps: int,
    shift: float = 1.0,
) -> Tensor:
    """A flow-matching teacher's sampler: num_steps evaluations. [B, C, H, W] -> [B, C, H, W].

    x_{t'} = x_t + (t' - t) v from t = 1 to 0, over times evenly apart and then shifted. With v =
    (x_t - x_0) / t that is x_0 + (t'/t) (x_t - x_0), which needs no velocity of the network.
    Source: SD3 (arXiv:2403.03206), section 2 and equation 23.
    """
    x = latents
    times = shifted(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift).tolist()
    for here, there in itertools.pairwise(times):
        level = schedule.level(torch.full((len(x),), here, dtype=x.dtype, device=x.device))
        x0 = net(x, level, cond).x0
        assert x0 is not None
        x = x0 + there / here * (x - x0)
    return x
