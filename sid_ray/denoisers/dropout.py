"""Dropout whose masks belong to the sample, not to the moment or the machine.

The mask of (sample, layer, element) is a hash of the sample's key, the layer's number and the
element's index: the same on CPU and GPU, in any packing of samples into forward passes, and again
when activation checkpointing recomputes a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.layouts import is_channels_last

# splitmix64's increment and multipliers, as signed 64-bit integers (Steele et al., 2014).
GOLDEN = -7046029254386353131
MIX_1 = -4658895280553007687
MIX_2 = -7723592293110705685


def _signed64(value: int) -> int:
    """An integer modulo 2^64, as the signed integer with the same bits."""
    return (value + 2**63) % 2**64 - 2**63


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own is arithmetic for int64."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix64(z: Tensor) -> Tensor:
    """splitmix64's output function: int64 in, well-mixed int64 out, any shape."""
    z = (z ^ _shift_right(z, 30)).mul_(MIX_1)
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(MIX_2)
    return z.bitwise_xor_(_shift_right(z, 31))


def keep_mask(keys: Tensor, site: int | Tensor, p: float, elements: int) -> Tensor:
    """[B] int64 keys -> [B, elements] bool, each element True with probability 1 - p.

    ``site`` may be an int64 tensor [], whose products wrap around as those of integers here.
    """
    shift = (site + 1) * GOLDEN
    start = mix64(keys + (_signed64(shift) if isinstance(shift, int) else shift))  # [B]
    index = torch.arange(elements, device=keys.device).mul_(GOLDEN)
    bits = mix64(start[:, None] + index[None, :])  # [B, elements]
    return _shift_right(bits, 11) >= int(p * 2**53)


class Dropped(torch.autograd.Function):
    """x times a mask and 1 / (1 - p): keeps a byte an element for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.p = p
        return Dropped.apply_mask(x, keep, p)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (keep,) = ctx.saved_tensors
        return Dropped.apply_mask(grads[0], keep, ctx.p), None, None

    @staticmethod
    def apply_mask(x: Tensor, keep: Tensor, p: float) -> Tensor:
        return (x * keep).mul_(torch.ones((), dtype=x.dtype, device=x.device) / (1 - p))


def keyed_dropout(x: Tensor, keys: Tensor | None, site: int | Tensor, p: float) -> Tensor:
    """Dropout of x [B, ...] with one int64 key a sample [B]; keys None or p 0 returns x.

    ``site`` tells the network's dropout layers apart. Kept elements are scaled by 1 / (1 - p).
    """
    if keys is None or p == 0:
        return x
    keep = keep_mask(keys, site, p, x[0].numel()).reshape(x.shape)
    if x.ndim == 4 and is_channels_last(x):
        keep = keep.contiguous(memory_format=torch.channels_last)
    dropped: Tensor = Dropped.apply(x, keep, p)
    return dropped


def number_sites(network: nn.Module) -> int:
    """Gives every dropout layer of a network its ``dropout_site``; returns how many there are."""
    layers = [m for m in network.modules() if hasattr(m, "dropout_site")]
    for site, layer in enumerate(layers):
        layer.dropout_site = site  # type: ignore[assignment]
    return len(layers)
