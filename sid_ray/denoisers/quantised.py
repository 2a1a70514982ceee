"""Linear layers of a frozen base, held in 8 or 4 bits a weight.

8bit    an integer in -127..127 a weight and a scale a row, as LLM.int8 stores them
4bit    NF4 of QLoRA in blocks of 64 weights with a scale each, as bitsandbytes stores them

In each pass, forward and backward, the weight is made anew from these in the precision of the
product, and nothing of it is kept: activations are not quantised, as LLM.int8 has them, because
SiD's losses are of small differences between networks. All that a layer holds is plain tensors that
trees share (adapters.py); bitsandbytes' own layers move theirs at the first call.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.errors import UserError

QUANTISED = ("8bit", "4bit")
BLOCK = 64
STEPS = 127


def quiet_bitsandbytes() -> None:
    """Leaves out one warning of bitsandbytes' on CPUs, of a kernel for inference alone.

    Before whatever imports it: diffusers and PEFT do where it is installed.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(is_no_kernel_warning)


def is_no_kernel_warning(record: logging.LogRecord) -> bool:
    return "gemm_4bit_forward" not in str(record.msg)


def require_bitsandbytes(asked: str = "adapter.base 4bit") -> None:
    """Raises UserError naming the extra where bitsandbytes, which ``asked`` needs, is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{asked} needs bitsandbytes, not installed here: pip install 'sid_ray[bitsandbytes]'"
        )


def quantised(weight: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """(codes, scales) of a weight [out, in]: int8 [out, in] and [out], or uint8 of two weights each
    and a scale a block.
    """
    weight = weight.to(torch.float32)
    if precision == "8bit":
        scales = weight.abs().amax(dim=1) / STEPS
        steps = weight / scales.masked_fill(scales == 0, 1)[:, None]
        return steps.round().to(torch.int8), scales
    require_bitsandbytes()
    quiet_bitsandbytes()
    import bitsandbytes  # noqa: F401  (it adds the operator)

    codes, scales = torch.ops.bitsandbytes.quantize_4bit(
        weight.contiguous(), BLOCK, "nf4", torch.uint8
    )
    return codes, scales


def restored(codes: Tensor, scales: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The weight that codes stand for, in a precision."""
    if codes.dtype == torch.int8:
        return (codes * scales[:, None]).to(dtype)
    made = torch.float32 if dtype == torch.float64 else dtype
    # As one row: on CPUs bitsandbytes 0.50.2 gives other numbers for rows that are no whole number
    # of blocks.
    flat = (1, math.prod(shape))
    row: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes, scales, BLOCK, "nf4", flat, made)
    return row.reshape(shape).to(dtype)


class QuantisedProduct(torch.autograd.Function):
    """x W^T + b with W made of its codes; neither x nor W is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, n_out: int
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.shape = (n_out, x.shape[-1])
        return F.linear(x, restored(codes, scales, ctx.shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (codes, scales) = grads, ctx.saved_tensors
        return grad @ restored(codes, scales, ctx.shape, grad.dtype), None, None, None, None


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose ``weight`` is codes."""

    scales: Tensor

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in]."""
        shape = (self.out_features, self.in_features)
        return restored(self.weight, self.scales, shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        casts = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if casts else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        found: Tensor = QuantisedProduct.apply(
            x.to(dtype), self.weight, self.scales, bias, self.out_features
        )
        return found


@torch.no_grad()
def quantise(layer: nn.Linear, precision: str) -> None:
    """Makes a linear layer one of 8bit or 4bit, in place. Raises UserError."""
    codes, scales = quantised(layer.weight, precision)
    layer.__class__ = QuantisedLinear
    layer.weight = nn.Parameter(codes, requires_grad=False)
    layer.register_buffer("scales", scales, persistent=False)
