"""One evaluation of a generator: from an image and fresh noise to a better image."""

from __future__ import annotations

from torch import Tensor

from sid_ray.types import Condition, Denoiser, Schedule


def generator_step(
    net: Denoiser,
    schedule: Schedule,
    image: Tensor,
    noise: Tensor,
    step: int,
    num_steps: int,
    cond: Condition,
) -> Tensor:
    """y_k = D(add_noise(y_{k-1}, noise, level_k); level_k), [B, C, H, W]; y_{-1} = 0.

    Levels fall linearly, in sigma for EDM and EDM2 (SiDA) and in the timestep for Stable Diffusion
    (SiD-LSG).
    """
    level = schedule.step_level(step, num_steps, len(image), image)
    y = net(schedule.add_noise(image, noise, level), level, cond).x0
    assert y is not None
    return y
