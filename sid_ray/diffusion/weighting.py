"""Weights of the generator's loss: one number a sample, without gradient.

Symbols
    y       generated image [B, C, H, W]         f_phi  teacher's estimate of it
    t       time of flow matching, 0 to 1        w      weight; the loss is divided by 1/w
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MIN_WEIGHT = 1e-5  # floor, as in the published runs: w explodes when y meets f_phi, or t meets 0


@torch.no_grad()
def sid_weight(y: Tensor, f_phi: Tensor) -> Tensor:
    """max(mean over C, H, W of |y - f_phi|, 1e-5), [B], in float32 at least, no gradient.

    What SiD's generator loss is divided by, and calls w; here 1/w.
    Source: SiD (arXiv:2404.04057), section 4, the weight of the generator loss.
    """
    wide = torch.promote_types(y.dtype, torch.float32)
    return (y.to(wide) - f_phi.to(wide)).abs().flatten(1).mean(1).clamp_min(MIN_WEIGHT)


# 1/w from t [B] and 1 - t, which the caller has more exactly. Source: SiD-DiT (the published
# code's names). "sid_legacy" is sid_weight.
OVER_TIME: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "1_minus_sigma": lambda t, rest: 1 / rest,
    "1_minus_sigma_squared": lambda t, rest: 1 / rest**2,
    "snr_sqrt": lambda t, rest: (t / rest).clamp_min(MIN_WEIGHT),
    "snr": lambda t, rest: ((t / rest) ** 2).clamp_min(MIN_WEIGHT),
    "1_over_sigma": lambda t, rest: t.clamp_min(MIN_WEIGHT),
    "1_over_sigma2": lambda t, rest: (t**2).clamp_min(MIN_WEIGHT),
}
SID_LEGACY = "sid_legacy"
WEIGHTINGS = (*OVER_TIME, SID_LEGACY)
