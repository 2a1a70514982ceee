"""SiDA: adversarial score identity distillation (arXiv:2410.14919).

Real images enter through a discriminator without parameters of its own: its logits are the channel
mean of the fake score's last encoder block. SiD2A is SiDA from another initial generator.

Symbols
    l_real, l_fake   logits of noisy real and generated images, same sigma and same noise
    W                sum of a group's weights: lambda in the fake-score phase, 1/w in the other;
                     each divided by e^u where the log-variance is used. For flow matching (SiD-DiT)
                     each sample has its own weight instead, C*H*W and 1/w
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sid_ray.objectives.functional import (
    MAX_LOGIT,
    adversarial_value,
    discriminator_value,
    finite_samples,
    group_product,
    only,
)
from sid_ray.objectives.sid import Denoised, Scored, SiD, fake_metrics, generator_metrics
from sid_ray.objectives.statistics import discriminator_statistics
from sid_ray.types import WHOLE, Batch, Draw, GroupSums, Loss, Networks, Scope, SumsOf, Want


class Judged(NamedTuple):
    """What the discriminator says of real and generated images, before any loss.

    weight lambda / e^u, value (BCE real + BCE fake) / 2 and finite are [B], the logits
    [B, 1, h, w]; only the logits are as they came in samples that are not finite, the others zero.
    """

    weight: Tensor
    value: Tensor
    finite: Tensor
    logits_real: Tensor
    logits_fake: Tensor


@dataclass(frozen=True)
class SiDA(SiD):
    """SiD and an adversarial loss averaged over each logical group, as sums over samples.

    Args, beside SiD's:
        adversarial_weight: factor of the generator's adversarial loss (0.01 as published).
        discriminator_weight: factor of the discriminator's loss (1 for EDM, 100 for EDM2).
        generator_start: images seen before the generator is trained at all.
        adversarial_start: images seen before its loss is half SiD's and half adversarial.
        official: also lets the discriminator's loss train the log-variance head.
    """

    adversarial_weight: float = 0.01
    discriminator_weight: float = 1.0
    generator_start: int = 0
    adversarial_start: int = 0

    def trains_generator(self, images_seen: int) -> bool:
        return images_seen > self.generator_start or self.generator_start == 0

    def _adversarial(self, images_seen: int) -> bool:
        return images_seen > self.adversarial_start or self.adversarial_start == 0

    # Fake score and discriminator -----------------------------------------------------------------

    def fake_loss(self, nets: Networks, batch: Batch, draw: Draw, scope: Scope = WHOLE) -> Loss:
        """The denoising loss of SiD, and the discriminator's."""
        batch = self.guidance.drop_text(batch, draw)
        seen = self.denoise(nets, batch, draw, self.schedule.fake_want | Want.LOGITS, True)
        loss = self.denoising_loss(seen)
        judged = self._judge(seen)
        adversarial = self._coupled(*judged[:3], scope)
        value, finite = judged.value, judged.finite
        total = self.fake_scale * loss + self.discriminator_weight * adversarial
        metrics = {"discriminator_loss": adversarial.detach(), "logit_loss": value.detach().sum()}
        metrics |= discriminator_statistics(judged.logits_real, judged.logits_fake, finite)
        return Loss(total, fake_metrics(loss, seen) | metrics)

    def _judge(self, seen: Denoised) -> Judged:
        logits_real, logits_fake = seen.prediction.real_logits, seen.prediction.logits
        assert logits_real is not None and logits_fake is not None
        clamped = self.schedule.adversarial_per_sample
        value = discriminator_value(logits_real, logits_fake, clamped)
        finite = seen.finite * finite_samples(value)
        weight = only(finite, self._discriminator_weight(seen))
        return Judged(weight, only(finite, value), finite, logits_real, logits_fake)

    def _coupled(self, weight: Tensor, value: Tensor, finite: Tensor, scope: Scope) -> Tensor:
        """Weights times values over the groups of a pass, or sample by sample."""
        if self.schedule.adversarial_per_sample:
            return (weight * value).sum()
        return group_product(weight, value, finite, scope.group_size or len(value), scope.sums)

    def _discriminator_weight(self, seen: Denoised) -> Tensor:
        if self.schedule.adversarial_per_sample:
            return torch.full_like(seen.finite, seen.target[0].numel())
        weight = self.schedule.fake_weight(seen.level)
        if seen.prediction.logvar is None:
            return weight
        u = seen.prediction.logvar
        return weight / (u if self.official else u.detach()).exp()

    def fake_sums(self, images_seen: int) -> SumsOf | None:
        return None if self.schedule.adversarial_per_sample else self._discriminator_sums

    @torch.no_grad()
    def _discriminator_sums(self, nets: Networks, batch: Batch, draw: Draw) -> GroupSums:
        batch = self.guidance.drop_text(batch, draw)
        seen = self.denoise(nets, batch, draw, self.schedule.fake_want | Want.LOGITS, True)
        return sums_of(*self._judge(seen)[:3])

    # Generator ------------------------------------------------------------------------------------

    def generator_loss(
        self, nets: Networks, batch: Batch, draw: Draw, scope: Scope = WHOLE
    ) -> Loss:
        """SiD's loss alone at first, then half of it and half the adversarial loss."""
        if not self._adversarial(scope.images_seen):
            return super().generator_loss(nets, batch, draw, scope)
        seen = self.score(nets, batch, draw, Want.X0 | Want.LOGITS)
        assert seen.logits is not None
        loss = self.distillation_loss(seen)
        weight, value, finite = self._adversarial_terms(seen)
        size = scope.group_size or len(value)
        adversarial = self._coupled(weight, value, finite, scope) * seen.y[0].numel()
        total = 0.5 * self.generator_scale * loss + 0.5 * self.adversarial_weight * adversarial
        with torch.no_grad():
            outside = (seen.logits.abs() > MAX_LOGIT).flatten(1).float().mean(1).sum()
        metrics = {"adversarial_loss": adversarial.detach(), "saturated_logits": outside}
        return Loss(total, generator_metrics(loss, seen, size) | metrics)

    def _adversarial_terms(self, seen: Scored) -> tuple[Tensor, Tensor, Tensor]:
        """(weights 1 / (w e^u), BCE of the clamped logits, finite), each [B]."""
        assert seen.logits is not None
        value = adversarial_value(seen.logits)
        finite = seen.finite * finite_samples(value)
        weight = 1 / (seen.divisor * seen.u.exp())
        return only(finite, weight), only(finite, value), finite

    def generator_sums(self, images_seen: int) -> SumsOf | None:
        if self.schedule.adversarial_per_sample:
            return None
        return self._adversarial_sums if self._adversarial(images_seen) else None

    @torch.no_grad()
    def _adversarial_sums(self, nets: Networks, batch: Batch, draw: Draw) -> GroupSums:
        seen = self.score(nets, batch, draw, Want.X0 | Want.LOGITS)
        return sums_of(*self._adversarial_terms(seen))


def sums_of(weight: Tensor, value: Tensor, finite: Tensor) -> GroupSums:
    return GroupSums(weight.sum(), value.sum(), finite.sum())
