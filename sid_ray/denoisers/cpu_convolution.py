"""Float32 convolutions on a CPU as oneDNN does them fastest, trained, frozen or of unit magnitude.

What torch 2.13 leaves: on one thread it takes 1x1 convolutions for matrix products of MKL, which on
other makers' processors has half the speed of oneDNN's; it computes gradients of small images'
weights in the images' order of memory, though the weights are the larger part, and copies them into
the parameters' order behind that. And EDM2's normalised weights, a copy of each, are as large as
the weights: here a channel's scale multiplies the output, which for small batches is far less.

On GPUs nothing of this is used, nor where SID_RAY_CPU_CODE=0 stands in the environment.

Symbols
    B, H, W   batch, height, width     I, O   input and output channels     k   width of a kernel
    P         pixels of a batch, B H W
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_ray.denoisers.layouts import is_channels_last

# The one switch of all code for CPUs alone, this file and training/allocator.py: 0 is off. What it
# brings on which processor is in docs/speed.md.
CPU_CODE = os.environ.get("SID_RAY_CPU_CODE", "1") != "0"
ONEDNN = CPU_CODE and torch.backends.mkldnn.is_available()
# Times an image's elements from which on a weight is no longer brought into the image's order in
# memory, but the image into the weight's, for the outputs and for the gradient of a weight.
MANY, SOME = 16, 2


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution can run here. Compiled networks have code of their own."""
    if torch.compiler.is_compiling() or not ONEDNN:
        return False
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [m, n], b [l, n] -> a b^T [m, l], by oneDNN."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(
        a.contiguous(), b.contiguous(), None, "none", [], ""
    )
    return out


def pixels(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [P, C]; no copy where channels are last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def rows(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [C, P]."""
    return x.permute(1, 0, 2, 3).reshape(x.shape[1], -1)


def image(found: Tensor, like: Tensor) -> Tensor:
    """[P, C] -> [B, C, H, W] in the order in memory of ``like``."""
    batch, _, height, width = like.shape
    return as_in(found.reshape(batch, height, width, -1).permute(0, 3, 1, 2), like)


def as_in(found: Tensor, like: Tensor) -> Tensor:
    """In the order in memory of ``like``."""
    layout = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return found.contiguous(memory_format=layout)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, I, H, W], [O, I, k, k] -> [B, O, H, W]."""
    if weight.shape[-1] > 1:
        inner = x.contiguous() if weight.numel() > MANY * x.numel() else x
        return as_in(F.conv2d(inner, weight, bias, padding=weight.shape[-1] // 2), x)
    out = image(product(pixels(x), weight.flatten(1)), x)
    return out if bias is None else out.add_(bias.reshape(1, -1, 1, 1))


def backward(grad: Tensor, x: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    pad = weight.shape[-1] // 2
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, mask
    )
    return found


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """grad [B, O, H, W] -> [B, I, H, W]."""
    if weight.shape[-1] == 1:
        return image(product(pixels(grad), weight.flatten(1).t()), grad)
    inner = grad.contiguous() if weight.numel() > MANY * grad.numel() else grad
    layout = torch.channels_last if is_channels_last(inner) else torch.contiguous_format
    # The input's values are not asked for, only its shape and order: nothing is written to it.
    shape = (len(grad), weight.shape[1], *grad.shape[2:])
    like = torch.empty(shape, dtype=grad.dtype, memory_format=layout)
    return as_in(backward(inner, like, weight, [True, False, False])[0], grad)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """grad [B, O, H, W], x [B, I, H, W] -> [O, I, k, k], contiguous as parameters are."""
    if weight.shape[-1] == 1:
        return product(rows(grad), rows(x)).reshape(weight.shape)
    if weight.numel() > SOME * x.numel():
        grad, x = grad.contiguous(), x.contiguous()
    return backward(grad, x, weight, [False, True, False])[1].contiguous()


class CPUConvolution(torch.autograd.Function):
    """x * weight + bias. Without a gradient of the weight its input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            input_gradient(grads[0], weight) if wants_x else None,
            weight_gradient(grads[0], x, weight) if wants_weight else None,
            grads[0].sum((0, 2, 3)) if wants_bias else None,
        )


class CPUUnitConvolution(torch.autograd.Function):
    """x convolved with scale w / (eps + rms(w)), rms over each output channel (EDM2, equation 47).

    With f = scale / (eps + rms) and n elements a channel, and h the gradient of a plain weight
    where the output's is f g: that of w is h - (<h, w> / ((eps + rms) n rms)) w.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: float, eps: float) -> Tensor:
        rms = torch.linalg.vector_norm(weight, dim=[1, 2, 3]) / weight[0].numel() ** 0.5
        factor = (scale / (eps + rms)).reshape(-1, 1, 1)
        ctx.save_for_backward(x if weight.requires_grad else None, weight, rms, factor)
        ctx.eps = eps
        return forward(x, weight, None).mul_(factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rms, factor = ctx.saved_tensors
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        grad = grads[0] * factor
        grad_x = input_gradient(grad, weight) if wants_x else None
        if not wants_weight:
            return grad_x, None, None, None
        out = weight_gradient(grad, x, weight)
        along = torch.linalg.vecdot(out.flatten(1), weight.flatten(1))
        slope = along / ((ctx.eps + rms) * weight[0].numel() * rms)
        slope = slope.masked_fill(rms == 0, 0)  # as the gradient of a norm at 0
        return grad_x, out.addcmul_(weight, -slope.reshape(-1, 1, 1, 1)), None, None
