"""SiD: data-free score identity distillation (arXiv:2404.04057)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.objectives.functional import denoising_loss, sid_generator_loss, sid_weight
from sid_ray.types import Batch, Condition, Draw, Loss, Networks, Schedule


@dataclass(frozen=True)
class SiD:
    """The two losses of SiD as sums over the samples they are given.

    Args:
        schedule: noise levels and weights of the teacher's family.
        alpha: weight of the Delta^2 correction; 1.0 or 1.2 in the published runs.
        fake_scale, generator_scale: constant factors (1 and 100 in the published runs). Adam
            does not see them but for its epsilon.
        generator_dropout: dropout in the generator while it is trained, as published.
    """

    schedule: Schedule
    alpha: float = 1.2
    fake_scale: float = 1.0
    generator_scale: float = 100.0
    generator_dropout: bool = True

    def generate(self, nets: Networks, batch: Batch, draw: Draw, dropout: bool) -> Tensor:
        """y = G(init_sigma * z, init_sigma, labels), [B, C, H, W]."""
        level = self.schedule.init_level(len(draw.latents), draw.latents)
        x_t = self.schedule.add_noise(torch.zeros_like(draw.latents), draw.latents, level)
        keys = draw.dropout_keys if dropout else None
        y = nets.generator(x_t, level, Condition(batch.labels, dropout_keys=keys)).x0
        assert y is not None
        return y

    def fake_loss(self, nets: Networks, batch: Batch, draw: Draw) -> Loss:
        """Denoising loss of the fake score on generated images (dropout on, as published)."""
        with torch.no_grad():
            y = self.generate(nets, batch, draw, dropout=False)
        level = self.schedule.fake_level(draw.time)
        x_t = self.schedule.add_noise(y, draw.noise, level)
        cond = Condition(batch.labels, dropout_keys=draw.dropout_keys)
        f_psi = nets.fake_score(x_t, level, cond).x0
        assert f_psi is not None
        loss = denoising_loss(f_psi, y, self.schedule.fake_weight(level)).sum()
        return Loss(loss * self.fake_scale, {"fake_loss": loss.detach()})

    def generator_loss(self, nets: Networks, batch: Batch, draw: Draw) -> Loss:
        """SiD's loss; its gradient flows through y, the teacher and the fake score."""
        y = self.generate(nets, batch, draw, dropout=self.generator_dropout)
        level = self.schedule.generator_level(draw.time)
        x_t = self.schedule.add_noise(y, draw.noise, level)
        cond = Condition(batch.labels)
        f_phi = nets.teacher(x_t, level, cond).x0
        f_psi = nets.fake_score(x_t, level, cond).x0
        assert f_phi is not None and f_psi is not None
        loss = sid_generator_loss(y, f_phi, f_psi, self.alpha).sum()
        with torch.no_grad():
            metrics = {
                "generator_loss": loss.detach(),
                "sid_weight": sid_weight(y, f_phi).sum(),
                "sample_std": y.flatten(1).std(1).sum(),
            }
        return Loss(loss * self.generator_scale, metrics)
