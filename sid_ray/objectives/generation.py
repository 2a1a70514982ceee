"""Evaluations of a generator: from noise to an image, and from an image to a better one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sid_ray.diffusion.schedules import image_shape
from sid_ray.types import Condition, Denoiser, Level, Schedule


class Evaluated(NamedTuple):
    """What one evaluation made: ``image`` [B, C, H, W] of ``x_t`` at ``level``."""

    image: Tensor
    x_t: Tensor
    level: Level


def generator_step(
    net: Denoiser,
    schedule: Schedule,
    before: Evaluated | None,
    noise: Tensor,
    latents: Tensor,
    step: int,
    num_steps: int,
    cond: Condition,
) -> Evaluated:
    """y_k = D(add_noise(y_{k-1}, noise, level_k); level_k), [B, C, H, W]; y_{-1} = 0.

    Levels fall linearly, in sigma for EDM and EDM2 (SiDA), in the timestep for Stable Diffusion
    (SiD-LSG) and in the time for flow matching (SiD-DiT). ``latents`` is what the first
    evaluation read, ``noise`` fresh noise of this one, which the schedule may leave out.
    """
    level = schedule.step_level(step, num_steps, noise.shape[0], noise)
    image = torch.zeros_like(noise)
    if before is not None:
        image, noise = before.image, noise_between(schedule.step_noise, before, noise, latents)
    x_t = schedule.add_noise(image, noise, level)
    y = net(x_t, level, cond).x0
    assert y is not None
    return Evaluated(y, x_t, level)


def noise_between(kind: str, before: Evaluated, fresh: Tensor, latents: Tensor) -> Tensor:
    """What an evaluation after the first reads: "fresh", the "fixed" latents of the first, or
    "ddim": (x_t - alpha y) / sigma, the noise that the evaluation before says is in its input,
    without gradient.
    """
    if kind == "fresh":
        return fresh
    if kind == "fixed":
        return latents
    alpha, sigma = image_shape(before.level.alpha), image_shape(before.level.sigma)
    return ((before.x_t - alpha * before.image) / sigma).detach()
