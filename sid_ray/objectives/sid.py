"""SiD: data-free score identity distillation (arXiv:2404.04057)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from sid_ray.config.sections import ObjectiveConfig
from sid_ray.diffusion.augment import AugmentPipe
from sid_ray.diffusion.schedules import image_shape
from sid_ray.objectives.functional import (
    denoising_loss,
    finite_samples,
    only,
    sid_generator_loss,
    uncertain,
)
from sid_ray.objectives.generation import generator_step
from sid_ray.objectives.lsg import PLAIN, Guidance
from sid_ray.objectives.statistics import sample_statistics
from sid_ray.types import (
    WHOLE,
    Batch,
    Condition,
    Draw,
    DrawSpec,
    Level,
    Loss,
    Networks,
    Prediction,
    Schedule,
    Scope,
    SumsOf,
    Want,
)


class Scored(NamedTuple):
    """A generated image and what the two scores say of it, zero in samples not finite.

    y, f_phi, f_psi and f_psi_second [B, C, H, W]; u [B] the fake score's log-variance, 0 without
    it; logits [B, ...] or None; finite [B]; divisor [B], 1/w of the loss.
    """

    y: Tensor
    f_phi: Tensor
    f_psi: Tensor
    f_psi_second: Tensor | None
    u: Tensor
    logits: Tensor | None
    finite: Tensor
    divisor: Tensor


class Denoised(NamedTuple):
    """Generated images as the fake score is trained on them, before any loss."""

    target: Tensor  # x_0 or epsilon, [B, C, H, W]
    level: Level
    prediction: Prediction
    found: Tensor  # the network's side of target
    weight: Tensor  # [B]
    finite: Tensor  # [B]


@dataclass(frozen=True)
class SiD:
    """The two losses of SiD as sums over the samples they are given.

    Args:
        schedule: noise levels and weights of the teacher's family.
        alpha: weight of the Delta^2 correction; 1.0 or 1.2 in the published runs.
        fake_scale, generator_scale: constant factors (1 and 100 in the published runs). Adam
            does not see them but for its epsilon.
        generator_dropout: dropout in the generator while it is trained, as published.
        logvar: weight both losses by the fake score's log-variance u (EDM2).
        augment: EDM's augmentation in the fake-score phase, or None.
        num_steps: K evaluations of the generator an image; one of them, at random, is trained.
        guidance: where SiD-LSG guides the scores.
        official: of K evaluations, train all as one where the published code does (compat).
    """

    schedule: Schedule
    alpha: float = 1.2
    fake_scale: float = 1.0
    generator_scale: float = 100.0
    generator_dropout: bool = True
    logvar: bool = False
    augment: AugmentPipe | None = None
    num_steps: int = 1
    guidance: Guidance = PLAIN
    official: bool = False

    through_scores: ClassVar[bool] = True  # the generator's gradient passes through both scores

    @classmethod
    def of(
        cls,
        chosen: ObjectiveConfig,
        schedule: Schedule,
        null_text: Tensor | None = None,
        **own: Any,
    ) -> Self:
        """The losses that a config's section describes.

        Args:
            null_text: [T, D], the empty prompt's embedding of a teacher that reads text.
            own: arguments that this class has beside SiD's.
        """
        kappas = (chosen.kappa1, chosen.kappa2, chosen.kappa3, chosen.kappa4)
        official = chosen.compat == "official"
        told = schedule.embeds_guidance
        return cls(
            schedule=schedule,
            alpha=chosen.alpha,
            fake_scale=chosen.fake_scale,
            generator_scale=chosen.generator_scale,
            generator_dropout=chosen.generator_dropout,
            logvar=chosen.logvar,
            augment=AugmentPipe(chosen.augment) if chosen.augment else None,
            num_steps=chosen.num_steps,
            guidance=Guidance(*kappas, chosen.text_dropout, null_text, told, told and official),
            official=official,
            **own,
        )

    @property
    def draw_spec(self) -> DrawSpec:
        drops = self.guidance.drops_text
        normal = self.schedule.normal_fake_time
        plan = None if self.augment is None else self.augment.plan
        return DrawSpec(normal, self.num_steps, drops, plan, self.schedule.normal_generator_time)

    def trains_generator(self, images_seen: int) -> bool:
        return True

    def generate(self, nets: Networks, batch: Batch, draw: Draw, dropout: bool) -> Tensor:
        """y = G(z, c), [B, C, H, W]; of K evaluations only the drawn one has a gradient.

        The outputs of all K are matched with one fake score (few-step SiD, arXiv:2505.12674). The
        published code matches the last output alone, and its gradient passes through all K, each
        with dropout of its own.
        """
        trained = 0 if draw.step is None else draw.step
        all_steps = self.official and self.schedule.officially_all_steps
        if all_steps:
            trained = self.num_steps - 1
        later = () if draw.more_noise is None else draw.more_noise.unbind(1)
        cond = Condition(batch.labels, text=batch.text)
        made = None
        for step, noise in enumerate((draw.latents, *later)[: trained + 1]):
            learns = all_steps or step == trained
            if learns and dropout and draw.dropout_keys is not None:
                cond = cond._replace(dropout_keys=draw.dropout_keys + (trained - step))
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                made = generator_step(
                    nets.generator,
                    self.schedule,
                    made,
                    noise,
                    draw.latents,
                    step,
                    self.num_steps,
                    cond,
                )
        assert made is not None
        return made.image

    # Fake score -----------------------------------------------------------------------------------

    def fake_loss(self, nets: Networks, batch: Batch, draw: Draw, scope: Scope = WHOLE) -> Loss:
        """Denoising loss of the fake score on generated images (dropout on, as published)."""
        batch = self.guidance.drop_text(batch, draw)
        seen = self.denoise(nets, batch, draw, self.schedule.fake_want)
        loss = self.denoising_loss(seen)
        return Loss(loss * self.fake_scale, fake_metrics(loss, seen))

    def fake_sums(self, images_seen: int) -> SumsOf | None:
        return None

    def denoise(
        self, nets: Networks, batch: Batch, draw: Draw, want: Want, beside_real: bool = False
    ) -> Denoised:
        """f_psi on noisy generated images, guided by kappa1.

        ``beside_real``: the encoder sees the batch's real images in the same pass, with the same
        noise levels and noise.
        """
        with torch.no_grad():
            y = self.generate(nets, batch, draw, dropout=False)
            # Out before the network sees it: one NaN within makes every weight's gradient NaN.
            usable = finite_samples(y)
            y, labels = self.augmented(only(usable, y), draw, real=False)
        level = self.schedule.fake_level(draw.time)
        x_t = self.schedule.add_noise(y, draw.noise, level)
        cond = Condition(batch.labels, labels, draw.dropout_keys, batch.text)
        if beside_real:
            assert batch.images is not None
            real, labels = self.augmented(batch.images, draw, real=True)
            real = self.schedule.add_noise(real, draw.noise, level)
            cond = cond._replace(real=real, real_augment=labels, real_text=batch.real_text)
        if self.logvar:
            want |= Want.LOGVAR
        prediction = self.guidance.own(nets.fake_score)(x_t, level, cond, want)
        found, target, weight = self.schedule.fake_terms(prediction, y, draw.noise, level)
        finite = usable * finite_samples(found)
        found, target = only(finite, found), only(finite, target)
        return Denoised(target, level, prediction, found, weight, finite)

    def augmented(self, images: Tensor, draw: Draw, real: bool) -> tuple[Tensor, Tensor | None]:
        """Images as EDM's pipe augments them, and the labels that say how; or as they are."""
        if self.augment is None:
            return images, None
        assert draw.augment is not None
        return self.augment.apply(images, draw.augment[:, int(real)])

    def denoising_loss(self, seen: Denoised) -> Tensor:
        """Sum of lambda (f_psi - y)^2, or with log-variance lambda / e^u (f_psi - y)^2 + u."""
        loss = denoising_loss(seen.found, seen.target, seen.weight)
        if seen.prediction.logvar is not None:
            loss = uncertain(loss, only(seen.finite, seen.prediction.logvar))
        return loss.sum()

    # Generator ------------------------------------------------------------------------------------

    def generator_loss(
        self, nets: Networks, batch: Batch, draw: Draw, scope: Scope = WHOLE
    ) -> Loss:
        """SiD's loss; its gradient flows through y, the teacher and the fake score."""
        seen = self.score(nets, batch, draw)
        loss = self.distillation_loss(seen)
        metrics = generator_metrics(loss, seen, scope.group_size)
        return Loss(loss * self.generator_scale, metrics)

    def generator_sums(self, images_seen: int) -> SumsOf | None:
        return None

    def score(self, nets: Networks, batch: Batch, draw: Draw, want: Want = Want.X0) -> Scored:
        """y, and both scores' estimates at the same y + n, guided by kappa4, kappa2 and kappa3."""
        y = self.generate(nets, batch, draw, dropout=self.generator_dropout)
        level = self.schedule.generator_level(draw.time)
        x_t = self.schedule.add_noise(y, draw.noise, level)
        cond = Condition(batch.labels, text=batch.text)
        if self.logvar:
            want |= Want.LOGVAR
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.through_scores):
            f_phi = self.guidance.teacher(nets.teacher)(x_t, level, cond).x0
            prediction, second = self.guidance.frozen(nets.fake_score, x_t, level, cond, want)
        f_psi = prediction.x0
        assert f_phi is not None and f_psi is not None
        finite = finite_samples(y, f_phi, f_psi)
        u = torch.zeros_like(finite) if prediction.logvar is None else prediction.logvar
        y, f_phi, f_psi = (only(finite, tensor) for tensor in (y, f_phi, f_psi))
        second = None if second is None else only(finite, second)
        divisor = self.schedule.loss_divisor(level, y, f_phi)
        return Scored(y, f_phi, f_psi, second, u.to(y.dtype), prediction.logits, finite, divisor)

    def distillation_loss(self, seen: Scored) -> Tensor:
        """Sum of SiD's loss over the samples, each divided by e^u."""
        loss = sid_generator_loss(
            seen.y, seen.f_phi, seen.f_psi, self.alpha, seen.f_psi_second, seen.divisor
        )
        return (loss / image_shape(seen.u).exp()).sum()


@torch.no_grad()
def fake_metrics(loss: Tensor, seen: Denoised) -> dict[str, Tensor]:
    """Sums over samples for reports."""
    return {"fake_loss": loss.detach(), "nonfinite_samples": (1 - seen.finite).sum()}


@torch.no_grad()
def generator_metrics(loss: Tensor, seen: Scored, group_size: int) -> dict[str, Tensor]:
    """Sums over samples for reports."""
    return sample_statistics(seen.y, seen.finite, group_size) | {
        "generator_loss": loss.detach(),
        "sid_weight": seen.divisor.sum(),
        "nonfinite_samples": (1 - seen.finite).sum(),
    }
