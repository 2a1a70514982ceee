"""Exponential moving average of weights as a function of images seen.

Symbols
    h   half-life in images           beta   what is kept of the average in one update
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def ema_beta(images_seen: int, batch_size: int, half_life_images: float, rampup: float) -> float:
    """beta = 0.5^(batch_size / h), h = min(half_life_images, rampup * images_seen).

    ``images_seen`` is the count before the update, so the first update copies the weights
    (beta 0). Half-life 0 means no averaging. Source: EDM's training loop as SiD uses it.
    """
    half_life = min(half_life_images, rampup * images_seen)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: Iterable[Tensor], current: Iterable[Tensor], beta: float) -> None:
    """average = beta * average + (1 - beta) * current, in place, pair by pair, no temporaries."""
    pairs = list(zip(average, current, strict=True))
    if pairs:
        means, values = ([pair[side] for pair in pairs] for side in (0, 1))
        torch._foreach_lerp_(means, values, 1 - beta)
