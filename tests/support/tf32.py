"""TF32 on a CPU: what an NVIDIA GPU makes of float32 where nobody switches it off."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROUNDED = (F.conv2d, F.linear, torch.matmul, torch.Tensor.matmul, F.scaled_dot_product_attention)


class TF32(TorchFunctionMode):
    """Inputs of matrix products and convolutions as TF32 rounds them: 10 bits behind the point."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ROUNDED:
            args = [rounded(a) if isinstance(a, Tensor) else a for a in args]
        return func(*args, **(kwargs or {}))


class Rounded(torch.autograd.Function):
    """Both ways: gradients are multiplied in TF32, too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return ten_bits(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return ten_bits(gradient)


def rounded(value: Tensor) -> Tensor:
    return Rounded.apply(value) if value.dtype == torch.float32 else value


def ten_bits(value: Tensor) -> Tensor:
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
