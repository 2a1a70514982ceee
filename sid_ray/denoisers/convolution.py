"""Convolutions of networks that are evaluated but not trained, and weights made ready once.

A frozen network still passes gradients on to its input (SiD's loss does, through teacher and fake
score). Two things are then done that training needs and this does not: autograd keeps the input of
each convolution, for the gradient of a weight that has none; and the weight is normalised and cast
anew in every forward pass, though it does not change. Neither is done here.

Symbols
    B, H, W   batch, height, width     I, O   input and output channels     k   width of a kernel
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.denoisers import cpu_convolution
from sid_ray.denoisers.cpu_convolution import CPUConvolution, CPUUnitConvolution


class FrozenConvolution(torch.autograd.Function):
    """A convolution whose weight and bias have no gradient: its input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape = x.shape
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (weight,) = grads, ctx.saved_tensors
        layout = torch.channels_last if ctx.channels_last else torch.contiguous_format
        # The values of x are not asked for, only its shape and order: nothing is written to it.
        like_x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=layout)
        grad_x = cpu_convolution.backward(grad, like_x, weight, [True, False, False])[0]
        return grad_x, None, None, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, I, H, W], [O, I, k, k] -> [B, O, H, W]: as many pixels out as in; odd k."""
    if cpu_convolution.fits(x, weight):
        found: Tensor = CPUConvolution.apply(x, weight, bias)
        return found
    padding = weight.shape[-1] // 2
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if x.requires_grad and not trained and torch.is_grad_enabled():
        out: Tensor = FrozenConvolution.apply(x, weight, bias, padding)
        return out
    return F.conv2d(x, weight, bias, padding=padding)


def dims_of_channel(weight: Tensor) -> list[int]:
    """The dimensions over which one output channel of a weight extends."""
    return list(range(1, weight.ndim))


class UnitWeight(torch.autograd.Function):
    """scale * w / (eps + rms(w)), rms over each output channel; keeps w and rms alone.

    With f(r) = scale / (eps + r), r = |w| / sqrt(n) and g the gradient of the result, that of w is
    f g + (<g, w> f'(r) / (n r)) w. The formula left to autograd keeps four copies of each weight.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: float, eps: float, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(w.dtype, torch.float32)
        norm = torch.linalg.vector_norm(w, dim=dims_of_channel(w), keepdim=True, dtype=wide)
        rms = norm / w[0].numel() ** 0.5
        ctx.save_for_backward(w, rms)
        ctx.scale, ctx.eps = scale, eps
        return (w * (scale / (eps + rms))).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, rms = ctx.saved_tensors
        g = grads[0].to(w.dtype)
        along = torch.linalg.vecdot(g.flatten(1), w.flatten(1)).reshape(rms.shape)
        slope = -ctx.scale / (ctx.eps + rms) ** 2 / (w[0].numel() * rms)
        slope = slope.masked_fill(rms == 0, 0)  # as the gradient of a norm at 0
        out = g * (ctx.scale / (ctx.eps + rms))
        return out.addcmul_(w, along * slope), None, None, None


def convolve_unit(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x convolved with a weight of unit magnitude over the square root of its fan-in, in x's dtype.

    [B, I, H, W], [O, I, k, k] -> [B, O, H, W] (EDM2, equation 47).
    """
    scale = float(weight[0].numel()) ** -0.5
    # Where outputs are the larger part, as with large batches, weights are better scaled.
    small = x.numel() // weight.shape[1] * weight.shape[0] < weight.numel()
    if small and cpu_convolution.fits(x, weight):
        out: Tensor = CPUUnitConvolution.apply(x, weight, scale, eps)
        return out
    return convolve(x, UnitWeight.apply(weight, scale, eps, x.dtype))


class Ready(nn.Module):
    """A layer whose weight can be made ready for as long as it does not change.

    ``ready`` is what forward uses in place of what it would make of ``weight`` each time: no
    parameter and no buffer, so no checkpoint has it.
    """

    weight: nn.Parameter | None
    ready: Tensor | None = None

    @property
    def stored(self) -> Tensor | None:
        """What ``weight`` is made of: itself, or under an adapter the base's (low_rank.py)."""
        return self.weight

    def made_ready(self, dtype: torch.dtype | None) -> Tensor:
        """The weight as forward would make it for a body of this precision, None for its own."""
        raise NotImplementedError


def ready_layers(module: nn.Module) -> Iterator[Ready]:
    """The layers that have a weight; those that an engine has taken apart are left out."""
    for layer in module.modules():
        if isinstance(layer, Ready) and layer.stored is not None and layer.stored.numel():
            yield layer


@contextmanager
def weights_ready(*modules: Any) -> Iterator[None]:
    """Inside, weights of these frozen denoisers must not change: each is made ready once.

    Costs a copy of them in the precision of the bodies. A denoiser that is no module is left alone.
    """
    found = [module for module in modules if isinstance(module, nn.Module)]
    chosen = [layer for module in found for layer in take_ready(module)]
    try:
        yield
    finally:
        for layer in chosen:
            layer.ready = None


@torch.no_grad()
def take_ready(module: nn.Module) -> list[Ready]:
    """Makes all weights ready that are not; returns the layers."""
    dtype = getattr(module, "compute_dtype", None)
    chosen = [layer for layer in ready_layers(module) if layer.ready is None]
    for layer in chosen:
        layer.ready = layer.made_ready(dtype)
    return chosen


def weights_of(module: nn.Module) -> Iterator[Tensor]:
    """The tensors that a network's weights are in, made ready or not."""
    yield from (parameter for parameter in module.parameters() if parameter.numel())
    for layer in module.modules():
        if isinstance(layer, Ready) and layer.ready is not None:
            yield layer.ready


@torch.no_grad()
def freeze(module: nn.Module, device: torch.device | None = None) -> None:
    """Makes weights ready for good and gives up what they were made from.

    For a network that is never trained nor written again: the memory is that of the ready weights
    alone, in the precision of the body. ``device`` is where it is to go, layer by layer: of what
    the weights are made from, no more than one is there. Of a base, other trees keep theirs.
    """
    module.requires_grad_(False)
    dtype = getattr(module, "compute_dtype", None)
    layers = [layer for layer in ready_layers(module) if layer.ready is None]
    left = Counter(id(layer.stored) for layer in layers)  # some weights are several layers'
    for layer in layers:
        key = id(layer.stored)
        if device is not None:
            layer.to(device)
        layer.ready = layer.made_ready(dtype)
        left[key] -= 1
        if not left[key]:
            give_up(layer, layer.ready)
    if device is not None:
        module.to(device)


def give_up(layer: Ready, ready: Tensor) -> None:
    """Lets go of what a layer's weight was made from."""
    stored = layer.stored
    if isinstance(stored, nn.Parameter):
        stored.data = ready.new_empty(0)
        return
    for name, buffer in layer._buffers.items():  # of a base: other trees hold the same tensor
        if buffer is stored:
            layer._buffers[name] = ready.new_empty(0)
