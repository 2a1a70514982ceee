"""Dropout whose masks belong to the sample, not to the moment or the machine.

The mask of (sample, layer, element) is a hash of the sample's key, the layer's number and the
element's index: the same on CPU and GPU, in any packing of samples into forward passes, and again
when activation checkpointing recomputes a layer.

A hash of 64 bits is four elements' numbers of 16 bits, the lowest first. So p is rounded to a
multiple of 2^-16, and what is kept is scaled by the rounded one. A hash an element, as it was
before, took a quarter of all bytes that the CIFAR-10 network moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.layouts import is_channels_last

# Part of the numbers of every run with dropout: a run that began with other masks is refused
# (run_folder.py). 1: a hash of 64 bits an element. 2: one for four elements.
MASKS = 2

# splitmix64's increment and multipliers, as signed 64-bit integers (Steele et al., 2014).
GOLDEN = -7046029254386353131
MIX_1 = -4658895280553007687
MIX_2 = -7723592293110705685

# Of the words of four elements: two rounds of this multiplier between shifts by half a word, which
# torch does in one operation without temporaries. The bits that come out are as even and as
# independent as chance (tests/denoisers/test_dropout_hash.py), after one round they are not.
MIX_WORD = 1051668233026429277
ELEMENTS_A_WORD, LANE = 4, 16  # bits a lane


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


def fold(z: Tensor) -> Tensor:
    """z xor (z >> 32), in place, of int64 in the order of bytes of all machines that torch has."""
    halves = z.view(torch.int32)
    halves[..., 0::2].bitwise_xor_(halves[..., 1::2])
    return z


def fold_by_shifts(z: Tensor) -> Tensor:
    """The same in arithmetic alone, which a compiler fuses."""
    return z ^ _shift_right(z, 32)


def mix_words(z: Tensor) -> Tensor:
    """int64 in, well-mixed int64 out; z is overwritten."""
    if torch.compiler.is_compiling():
        z = fold_by_shifts(fold_by_shifts(z) * MIX_WORD) * MIX_WORD
        return fold_by_shifts(z)
    return fold(fold(fold(z).mul_(MIX_WORD)).mul_(MIX_WORD))


def rounded(p: float) -> int:
    """A probability in units of 2^-16; never so high that all are dropped."""
    return min(round(p * 2**LANE), 2**LANE - 1)


def keep_mask(keys: Tensor, site: int | Tensor, p: float, elements: int) -> Tensor:
    """[B] int64 keys -> [B, elements] bool, each element True with probability 1 - p.

    ``site`` may be an int64 tensor [], whose products wrap around as those of integers here.
    """
    shift = (site + 1) * GOLDEN
    start = mix64(keys + (_signed64(shift) if isinstance(shift, int) else shift))[:, None]  # [B, 1]
    if torch.compiler.is_compiling():
        return keep_of_elements(start, rounded(p), elements)
    words = -(-elements // ELEMENTS_A_WORD)
    counter = torch.arange(words, device=keys.device).mul_(GOLDEN)
    lanes = mix_words(start + counter).view(torch.int16)[:, :elements]
    return lanes >= rounded(p) - 2 ** (LANE - 1)


def keep_of_elements(start: Tensor, threshold: int, elements: int) -> Tensor:
    """keep_mask for compilers: each element by itself, so that no word is ever in memory."""
    element = torch.arange(elements, device=start.device)
    # A shift, no division by ELEMENTS_A_WORD: inductor takes that into its index arithmetic, where
    # 4 * GOLDEN is a number that no int64 holds ("too big to convert to int64_t").
    word = mix_words(start + (element >> 2) * GOLDEN)
    lane = (word >> (element % ELEMENTS_A_WORD * LANE)) & (2**LANE - 1)
    return (lane ^ 2 ** (LANE - 1)) >= threshold  # as the signed number that it is above


class Dropped(torch.autograd.Function):
    """x times a mask times a factor: keeps a byte an element for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.factor = factor
        return Dropped.apply_mask(x, keep, factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (keep,) = ctx.saved_tensors
        return Dropped.apply_mask(grads[0], keep, ctx.factor), None, None

    @staticmethod
    def apply_mask(x: Tensor, keep: Tensor, factor: float) -> Tensor:
        if x.is_cuda:  # in one kernel, that of torch's own dropout's gradient
            masked: Tensor = torch.ops.aten.native_dropout_backward(x, keep, factor)
            return masked
        return (x * keep).mul_(torch.full((), factor, dtype=x.dtype, device=x.device))


def keyed_dropout(x: Tensor, keys: Tensor | None, site: int | Tensor, p: float) -> Tensor:
    """Dropout of x [B, ...] with one int64 key a sample [B]; keys None or p 0 returns x.

    ``site`` tells the network's dropout layers apart. Kept elements are scaled by 1 / (1 - p), p
    rounded as its masks are.
    """
    if keys is None or p == 0:
        return x
    keep = keep_mask(keys, site, p, x[0].numel()).reshape(x.shape)
    if x.ndim == 4 and is_channels_last(x):
        keep = keep.contiguous(memory_format=torch.channels_last)
    dropped: Tensor = Dropped.apply(x, keep, 1 / (1 - rounded(p) / 2**LANE))
    return dropped


def number_sites(network: nn.Module) -> int:
    """Gives every dropout layer of a network its ``dropout_site``; returns how many there are."""
    layers = [m for m in network.modules() if hasattr(m, "dropout_site")]
    for site, layer in enumerate(layers):
        layer.dropout_site = site  # type: ignore[assignment]
    return len(layers)
