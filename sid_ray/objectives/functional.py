"""The formulas of score identity distillation, each once, pure, with its source.

Symbols
    y            generated image G(z) [B, C, H, W]        n      forward noise sigma * eps
    f_phi        teacher's estimate of x_0 from y + n     f_psi  fake score's estimate, same input
    Delta        f_phi - f_psi                            alpha  weight of the Delta^2 correction
    w            per-sample weight [B]                    lambda(sigma)  EDM's weight [B]
"""

from __future__ import annotations

import torch
from torch import Tensor

from sid_ray.schedules import image_shape

MIN_WEIGHT = 1e-5  # floor of w, as in the published runs: 1/w explodes when y meets f_phi


@torch.no_grad()
def sid_weight(y: Tensor, f_phi: Tensor) -> Tensor:
    """w = max(mean over C, H, W of |y - f_phi|, 1e-5), [B], in float32 at least, no gradient.

    Source: SiD (arXiv:2404.04057), section 4, the weight of the generator loss.
    """
    wide = torch.promote_types(y.dtype, torch.float32)
    return (y.to(wide) - f_phi.to(wide)).abs().flatten(1).mean(1).clamp_min(MIN_WEIGHT)


def sid_generator_loss(y: Tensor, f_phi: Tensor, f_psi: Tensor, alpha: float) -> Tensor:
    """Delta * ((f_phi - y) - alpha * Delta) / w, element by element, [B, C, H, W].

    The gradient reaches the generator through y, through the teacher and through the fake score;
    only w is constant. Zero, with zero gradient, where the fake score equals the teacher.
    Source: SiD (arXiv:2404.04057), the alpha-weighted loss of equation 23.
    """
    delta = f_phi - f_psi
    w = image_shape(sid_weight(y, f_phi))
    return delta * ((f_phi - y) - alpha * delta) / w


def denoising_loss(prediction: Tensor, x_0: Tensor, weight: Tensor) -> Tensor:
    """lambda(sigma) * (D(x_0 + n; sigma) - x_0)^2, element by element, [B, C, H, W].

    On real images it trains a teacher (EDM, arXiv:2206.00364, equation 8); on generated ones it
    trains the fake score (SiD, equation 10).
    """
    return image_shape(weight) * (prediction - x_0) ** 2
