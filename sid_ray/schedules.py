"""Noise levels of the EDM family.

Symbols
    sigma        noise standard deviation       sigma_data   standard deviation of the data (0.5)
    rho          curvature of the time grid     t            position on it, 0 (noisy) to 1 (clean)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.types import Level


def image_shape(per_sample: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1], to scale images [B, C, H, W]."""
    return per_sample.reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class EDMSchedule:
    """Noise levels for EDM and EDM2 teachers (EDM, table 1; SiD, section 4).

    Args are those of the config's ``schedule`` section.
    """

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    t_max: float = 0.8
    init_sigma: float = 2.5
    sigma_data: float = 0.5

    def level(self, sigma: Tensor) -> Level:
        """A level from sigma [B]; t = ln(sigma)/4 is what the network is told (EDM, table 1)."""
        return Level(t=sigma.log() / 4, alpha=torch.ones_like(sigma), sigma=sigma)

    def sigma_at(self, t: Tensor) -> Tensor:
        """The rho grid: sigma(0) = sigma_max, sigma(1) = sigma_min (EDM, equation 5)."""
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (top + t * (bottom - top)) ** self.rho

    def fake_level(self, draw: Tensor) -> Level:
        """ln sigma = p_mean + p_std * draw, draw [B] normal (EDM, table 1)."""
        return self.level((self.p_mean + self.p_std * draw).exp())

    def generator_level(self, draw: Tensor) -> Level:
        """draw [B] uniform in [0, 1): t' = t_max * draw, sigma the rho grid at 1 - t' (SiD).

        t_max 0.8 leaves out the noisiest fifth: sigma reaches 24.4.
        """
        return self.level(self.sigma_at(1 - self.t_max * draw))

    def init_level(self, batch: int, like: Tensor) -> Level:
        """The level at which the generator reads its noise: init_sigma for every sample."""
        return self.level(
            torch.full((batch,), self.init_sigma, dtype=like.dtype, device=like.device)
        )

    def add_noise(self, x_0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """x_t = alpha * x_0 + sigma * noise; images [B, C, H, W]."""
        return image_shape(level.alpha) * x_0 + image_shape(level.sigma) * noise

    def fake_weight(self, level: Level) -> Tensor:
        """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2, [B] (EDM, table 1)."""
        return (level.sigma**2 + self.sigma_data**2) / (level.sigma * self.sigma_data) ** 2
