"""What a run's health is judged by, measured where the losses are: sums over samples.

Everything here is read from tensors that the losses have computed anyway; no network is evaluated
for it and nothing waits for the device. Samples that are not finite are zeros in all of them.

Symbols
    y                generated images [B, C, H, W], zero in samples that are not finite
    l_real, l_fake   adversarial logits [B, 1, h, w] of noisy real and generated images
"""

from __future__ import annotations

import torch
from torch import Tensor

from sid_ray.objectives.functional import only

PICTURE_CHANNELS = (1, 3)  # grey and colour; latents, which have no range, have 4 and more


@torch.no_grad()
def sample_statistics(y: Tensor, finite: Tensor, group_size: int) -> dict[str, Tensor]:
    """Statistics of generated images, each the sum of B numbers.

    ``sample_mean`` and ``sample_std``: over the values of an image. ``saturated_values``: the share
    of an image's values at or beyond the range [-1, 1], for pictures; latents have no range.
    ``sample_spread``: the standard deviation between images, value by value, estimated from pairs
    of neighbours: |a - b| / sqrt(2), root mean square over the values. It is 0 when all images are
    the same, which ``sample_std`` does not see. Pairs lie within a group, so that packing changes
    nothing; groups or parts of an odd number of images have no spread.
    """
    values = y.flatten(1)
    found = {"sample_mean": values.mean(1).sum(), "sample_std": values.std(1).sum()}
    if y.shape[1] in PICTURE_CHANNELS:
        found["saturated_values"] = (values.abs() >= 1).to(y.dtype).mean(1).sum()
    if len(y) % 2 == 0 and group_size % 2 == 0:
        differences = (values[0::2] - values[1::2]).square().mean(1).div(2).sqrt()
        both = finite[0::2] * finite[1::2]
        found["sample_spread"] = 2 * only(both, differences).sum()
    return found


@torch.no_grad()
def discriminator_statistics(real: Tensor, fake: Tensor, finite: Tensor) -> dict[str, Tensor]:
    """Mean logits, and the shares of them on the right side of 0, each the sum of B numbers.

    ``real`` and ``fake`` are l_real and l_fake; above 0 means "real". Both shares are 0.5 for a
    discriminator that knows nothing.
    """
    real, fake = only(finite, real).flatten(1), only(finite, fake).flatten(1)
    return {
        "discriminator_accuracy_real": (real > 0).to(real.dtype).mean(1).sum(),
        "discriminator_accuracy_fake": (fake < 0).to(fake.dtype).mean(1).sum(),
        "discriminator_logit_real": real.mean(1).sum(),
        "discriminator_logit_fake": fake.mean(1).sum(),
    }
