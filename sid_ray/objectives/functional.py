"""The formulas of score identity distillation, each once, pure, with its source.

Symbols
    y            generated image G(z) [B, C, H, W]        n      forward noise sigma * eps
    f_phi        teacher's estimate of x_0 from y + n     f_psi  fake score's estimate, same input
    Delta        f_phi - f_psi                            alpha  weight of the Delta^2 correction
    w            per-sample weight [B]                    lambda(sigma)  EDM's weight [B]
    u            log-variance head of EDM2 [B]            l      adversarial logits [B, 1, h, w]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_ray.diffusion.schedules import image_shape
from sid_ray.diffusion.weighting import sid_weight
from sid_ray.types import GroupSums

MAX_LOGIT = 10.0  # the generator's adversarial loss is flat beyond, as in the published runs


def sid_generator_loss(
    y: Tensor,
    f_phi: Tensor,
    f_psi: Tensor,
    alpha: float,
    f_psi_second: Tensor | None = None,
    divisor: Tensor | None = None,
) -> Tensor:
    """Delta * ((f_psi - y) + (1 - alpha) * Delta) / w, element by element, [B, C, H, W].

    The same as Delta * ((f_phi - y) - alpha * Delta) / w. The gradient reaches the generator
    through y, through the teacher and through the fake score; only w is constant. Zero, with zero
    gradient, where the fake score equals the teacher. ``f_psi_second`` is the fake score in the
    second factor where it is guided otherwise than in Delta (SiD-LSG's kappa3 and kappa2);
    ``divisor`` [B] stands for w; SiD's own where it is None.
    Source: SiD (arXiv:2404.04057), the alpha-weighted loss of equation 23; SiD-LSG
    (arXiv:2406.01561).
    """
    delta = f_phi - f_psi
    if f_psi_second is None:
        factor = (f_phi - y) - alpha * delta
    else:
        factor = (f_psi_second - y) + (1 - alpha) * delta
    return delta * factor / image_shape(sid_weight(y, f_phi) if divisor is None else divisor)


def vsd_generator_loss(
    y: Tensor, f_phi: Tensor, f_psi: Tensor, divisor: Tensor | None = None
) -> Tensor:
    """A loss whose gradient to y is -Delta / w and nothing else, [B, C, H, W].

    Variational score distillation, the baseline: SiD without the derivatives of the two scores.
    Its value is half the squared gradient. Source: DMD (arXiv:2311.18828), equation 7; SwiftBrush
    (arXiv:2312.05239); w as in DMD's equation 8.
    """
    w = sid_weight(y, f_phi) if divisor is None else divisor
    gradient = -(f_phi - f_psi).detach() / image_shape(w)
    return 0.5 * (y - (y.detach() - gradient)) ** 2


def denoising_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """weight * (prediction - target)^2, element by element, [B, C, H, W].

    With lambda(sigma) and x_0 it trains a teacher on real images (EDM, arXiv:2206.00364, equation
    8) and the fake score on generated ones (SiD, equation 10); with 1 and epsilon, SiD-LSG's.
    """
    return image_shape(weight) * (prediction - target) ** 2


def uncertain(loss: Tensor, u: Tensor) -> Tensor:
    """loss / e^u + u, element by element: a loss weighted by a learned log-variance u [B].

    Source: EDM2 (arXiv:2312.02696), uncertainty-based weighting.
    """
    return loss / image_shape(u).exp() + image_shape(u)


def logit_loss(logits: Tensor, real: bool) -> Tensor:
    """Binary cross-entropy of logits [B, ...] against "real" or "fake", mean a sample, [B]."""
    return F.softplus(-logits if real else logits).flatten(1).mean(1)


def discriminator_value(logits_real: Tensor, logits_fake: Tensor, clamped: bool = False) -> Tensor:
    """(BCE(l_real, 1) + BCE(l_fake, 0)) / 2 a sample, [B]. Source: SiDA (arXiv:2410.14919).

    ``clamped``: the logits to -10 .. 10, as SiD-DiT does in this phase, too.
    """
    if clamped:
        logits_real = logits_real.clamp(-MAX_LOGIT, MAX_LOGIT)
        logits_fake = logits_fake.clamp(-MAX_LOGIT, MAX_LOGIT)
    return (logit_loss(logits_real, real=True) + logit_loss(logits_fake, real=False)) / 2


def adversarial_value(logits_fake: Tensor) -> Tensor:
    """BCE(clamp(l_fake, -10, 10), 1) a sample, [B]: the generator's side (SiDA)."""
    return logit_loss(logits_fake.clamp(-MAX_LOGIT, MAX_LOGIT), real=True)


def group_product(
    weight: Tensor, value: Tensor, finite: Tensor, group_size: int, whole: GroupSums | None
) -> Tensor:
    """Sum over groups of (sum of the group's weights) * (mean of its values), a scalar.

    SiDA's coupling (arXiv:2410.14919, "batch-normalised"): every sample's weight meets the mean
    over the published batch-gpu, here the logical group. ``weight``, ``value`` and ``finite`` (0 or
    1) are [B]. With ``whole``, the samples are a part of one group of those sums: the values of the
    parts, and their gradients, add up to the group's.
    """
    if whole is None:
        weights, values, counts = (
            part.reshape(-1, group_size).sum(1) for part in (weight, value, finite)
        )
        return (weights * values / counts.clamp_min(1)).sum()
    mean = whole.value / whole.samples.clamp_min(1)
    own = value.sum() / whole.samples.clamp_min(1)
    return whole.weight * own + (weight - weight.detach()).sum() * mean


def finite_samples(*tensors: Tensor) -> Tensor:
    """Which samples are finite in all tensors [B, ...]: [B] of 0 and 1 in the first's dtype."""
    good = torch.stack([t.detach().isfinite().reshape(len(t), -1).all(1) for t in tensors])
    return good.all(0).to(tensors[0].dtype)


def only(finite: Tensor, tensor: Tensor) -> Tensor:
    """Zeros in the samples of [B, ...] that are not finite: no contribution and no gradient."""
    mask = finite.bool().reshape(-1, *(1,) * (tensor.dim() - 1))
    return torch.where(mask, tensor, torch.zeros_like(tensor))
