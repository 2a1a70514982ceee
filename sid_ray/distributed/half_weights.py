"""A float32 weight in two halves: bfloat16 to compute with, and 16 bits of what it lacks.

The bfloat16 half is the nearest one (of two as near, the one further from 0), and float32 is both
together, to the bit: a step of 1e-8 on a weight of 1 moves what is lacking, not the half that is
computed with, and none of it is lost. Four bytes a weight, as float32 alone takes.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 1 << 15  # of the distance between two bfloat16, in float32's last bits


def split_halves(value: Tensor) -> tuple[Tensor, Tensor]:
    """float32 -> (bfloat16, int16), each of its shape. NaN is not told from what lies beside it."""
    bits = value.contiguous().view(torch.int32)
    near = (bits + HALF) >> 16  # bits are sign and magnitude: this rounds the magnitude
    low = (bits - (near << 16)).to(torch.int16)
    return near.to(torch.int16).view(torch.bfloat16), low


def join_halves(near: Tensor, low: Tensor) -> Tensor:
    """The inverse of split_halves: float32."""
    bits = (near.view(torch.int16).to(torch.int32) << 16) + low
    return bits.view(torch.float32)
