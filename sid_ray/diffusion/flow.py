"""Noise levels of flow matching (rectified flow): SD3, FLUX, SANA and their like.

Symbols
    x_0, eps   clean image; standard normal noise       t   time: 0 is the image, 1 the noise
    x_t        (1 - t) x_0 + t eps                      v   what the network predicts: eps - x_0
    f          estimate of x_0: x_t - t v               K   evaluations of a generator
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sid_ray.diffusion.schedules import NoiseLevels, image_shape
from sid_ray.diffusion.weighting import OVER_TIME, SID_LEGACY, WEIGHTINGS, sid_weight
from sid_ray.errors import UserError, nearest
from sid_ray.types import Level, Prediction, Want

LAST = 999  # of 1000 timesteps: t_init 999 is t = 1
STEP_NOISES = ("fresh", "fixed", "ddim")


def shifted(t: Tensor, shift: float) -> Tensor:
    """shift t / (1 + (shift - 1) t): more of the steps at high noise. Source: SD3
    (arXiv:2403.03206), equation 23.
    """
    return shift * t / (1 + (shift - 1) * t)


def x0_from_velocity(x_t: Tensor, v: Tensor, level: Level) -> Tensor:
    """x_0 = x_t - t v; all [B, C, H, W]."""
    return x_t - image_shape(level.sigma) * v


@dataclass(frozen=True)
class FlowSchedule(NoiseLevels):
    """Noise levels for flow-matching teachers (SiD-DiT; SD3, arXiv:2403.03206).

    Args:
        time_mean, time_std: both losses draw t = sigmoid(time_mean + time_std n), n normal.
        weighting: w of the generator's loss, one of WEIGHTINGS.
        init_time: t_init / 999 is the time at which the generator reads its noise.
        generator_shift: of the generator's levels; 1 leaves them evenly apart.
        step_noise: what its evaluations after the first read: fresh, fixed or ddim.
    """

    normal_generator_time: ClassVar[bool] = True
    fake_want: ClassVar[Want] = Want.RAW
    adversarial_per_sample: ClassVar[bool] = True
    officially_all_steps: ClassVar[bool] = False

    time_mean: float = 0.6931471805599453  # log 2
    time_std: float = 1.6
    weighting: str = "1_minus_sigma"
    init_time: int = LAST
    generator_shift: float = 1.0
    step_noise: str = "fresh"  # type: ignore[misc]  # a class variable where there is no choice

    def __post_init__(self) -> None:
        for name, known in (("weighting", WEIGHTINGS), ("step_noise", STEP_NOISES)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(
                    f"{name} {value!r} is not supported; known: {', '.join(known)}."
                    f"{nearest(str(value), known)}"
                )
        if not 0 < self.init_time <= LAST:
            raise UserError(f"init_time {self.init_time} is not within 1..{LAST}")
        if self.generator_shift <= 0:
            raise UserError(f"generator_shift {self.generator_shift} is not above 0")

    def level(self, t: Tensor) -> Level:
        """A level from times [B]."""
        return Level(t=t, alpha=1 - t, sigma=t)

    def fake_level(self, draw: Tensor) -> Level:
        """draw [B] normal -> t = sigmoid(log 2 + 1.6 draw): t / (1 - t) is log-normal."""
        return self.level((self.time_mean + self.time_std * draw).sigmoid())

    def generator_level(self, draw: Tensor) -> Level:
        """The same as in the fake-score phase, from a draw of its own."""
        return self.fake_level(draw)

    def step_level(self, step: int, num_steps: int, batch: int, like: Tensor) -> Level:
        """The generator's levels: t_i = (t_init / 999) (1 - i / K), then shifted."""
        t = torch.full((batch,), self.init_time / LAST, dtype=like.dtype, device=like.device)
        return self.level(shifted(t * (1 - step / num_steps), self.generator_shift))

    def fake_weight(self, level: Level) -> Tensor:
        """1 / t^2, [B]: the weight of |x_0 error|^2 that the plain sum of (v error)^2 is."""
        return 1 / level.sigma**2

    def fake_terms(
        self, found: Prediction, x_0: Tensor, noise: Tensor, level: Level
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(v, eps - x_0, 1): the fake score's loss compares velocities."""
        assert found.raw is not None
        return found.raw, noise - x_0, torch.ones_like(level.sigma)

    @torch.no_grad()
    def loss_divisor(self, level: Level, y: Tensor, f_phi: Tensor) -> Tensor:
        """1/w by ``weighting``, [B]."""
        if self.weighting == SID_LEGACY:
            return sid_weight(y, f_phi)
        return OVER_TIME[self.weighting](level.sigma, level.alpha)


class GuidedFlowSchedule(FlowSchedule):
    """The same for networks that are told their guidance scale (FLUX)."""

    embeds_guidance: ClassVar[bool] = True
