"""A step the way the published code runs it, for comparisons: the same numbers at its costs.

What differs from sid_ray: images in NCHW; a convolution's bias added behind it; biases, embeddings
and skips added in place; attention as two products around a softmax, on the layout that the
convolution leaves; EDM2's resampling as a convolution of each channel; each EDM2 weight normalised
in every forward pass, as autograd's own operations; the inputs of convolutions kept in frozen
networks too; real images through the encoder in a pass of their own; dropout's factors kept as
floats; Adam with both moments and a loop over tensors; gradients of both networks kept until their
next phase (SiD; SiDA lets go of the fake score's); every gradient through nan_to_num; the average
written tensor by tensor.

What is the same: random numbers, losses and data. Masks of dropout too, so that weights can be
compared: they are made while the clock stands, and the draw that torch's own dropout would make is
made beside, on the clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.denoisers import dropout, edm2, edm_layers
from sid_ray.denoisers.convolution import dims_of_channel
from sid_ray.denoisers.precondition import Preconditioned
from sid_ray.distributed.adam import AdamSettings
from sid_ray.distributed.roles import TorchRole, UpdateRules, constrain_module
from sid_ray.types import Condition, Level, Prediction, Want

Paused = Callable[[], AbstractContextManager[None]]


def conv2d(self: edm_layers.Conv2d, x: Tensor) -> Tensor:
    """EDM: weights cast where they are used, the bias last."""
    if self.weight is not None and self.fused_resample and self.down:
        weight = self.weight.to(x.dtype)
        x = F.conv2d(x, weight, padding=self.weight_pad + self.filter_pad)
        x = filter_down(self, x, 0)
    else:
        if self.up:
            x = filter_up(self, x)
        if self.down:
            x = filter_down(self, x, self.filter_pad)
        if self.weight is not None:
            x = F.conv2d(x, self.weight.to(x.dtype), padding=self.weight_pad)
    return x if self.bias is None else x.add_(self.bias.to(x.dtype).reshape(1, -1, 1, 1))


def filter_up(self: edm_layers.Conv2d, x: Tensor) -> Tensor:
    taps = (self.resample_filter * 4).to(x.dtype).expand(x.shape[1], 1, -1, -1)
    return F.conv_transpose2d(x, taps, stride=2, padding=self.filter_pad, groups=x.shape[1])


def filter_down(self: edm_layers.Conv2d, x: Tensor, pad: int) -> Tensor:
    taps = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, taps, stride=2, padding=pad, groups=x.shape[1])


def edm_block(
    self: edm_layers.UNetBlock, x: Tensor, emb: Tensor, dropout_keys: Tensor | None
) -> Tensor:
    """EDM's block, whose sums are written into what a convolution has just made."""
    style = self.style
    h = self.conv0(F.silu(self.norm0(x)))
    affine = self.affine(emb)[:, :, None, None].to(h.dtype)
    if style.adaptive_scale:
        scale, shift = affine.chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
    else:
        h = F.silu(self.norm1(h.add_(affine)))
    h = self.conv1(edm_layers.keyed_dropout(h, dropout_keys, self.dropout_site, style.dropout))
    x = h.add_(x if self.skip is None else self.skip(x)) * style.skip_scale
    return self.attention(x) if self.heads else x


def edm_attention(self: edm_layers.UNetBlock, x: Tensor) -> Tensor:
    """Products and softmax in float32."""
    parts = heads_of(self.qkv(self.norm2(x)), self.heads)
    out = weighted(*parts.unbind(3), torch.float32).reshape(x.shape)
    return self.proj(out).add_(x) * self.style.skip_scale


def edm2_attention(self: edm2.Block, x: Tensor) -> Tensor:
    """Products and softmax in the body's own precision, q, k and v normalised over a head."""
    parts = edm2.normalize(heads_of(self.attn_qkv(x), self.heads), dim=2)
    return self.attn_proj(weighted(*parts.unbind(3), x.dtype).reshape(x.shape))


def heads_of(qkv: Tensor, heads: int) -> Tensor:
    """[B, 3C, H, W] -> [B, heads, d, 3, L], as it lies in memory."""
    batch, channels, height, width = qkv.shape
    return qkv.reshape(batch, heads, channels // (3 * heads), 3, height * width)


def weighted(q: Tensor, k: Tensor, v: Tensor, wide: torch.dtype) -> Tensor:
    """v weighted by softmax(q k / sqrt(d)); all [B, heads, d, L]."""
    scores = q.to(wide).transpose(2, 3) @ (k / math.sqrt(k.shape[2])).to(wide)
    return v @ scores.softmax(dim=3).to(v.dtype).transpose(2, 3)


def resample(x: Tensor, taps: tuple[int, ...], mode: str) -> Tensor:
    """EDM2: a convolution of each channel, for the mean of 2 x 2 pixels too."""
    if mode == "keep":
        return x
    row = torch.tensor(taps, dtype=x.dtype, device=x.device)
    kernel = row.outer(row) / row.sum() ** 2 * (4 if mode == "up" else 1)
    kernel, pad = kernel.expand(x.shape[1], 1, -1, -1), (len(taps) - 1) // 2
    convolve = F.conv_transpose2d if mode == "up" else F.conv2d
    return convolve(x, kernel, stride=2, padding=pad, groups=x.shape[1])


def mp_conv(self: edm2.MPConv, x: Tensor, gain: Tensor | float | None = None) -> Tensor:
    """EDM2, equation 47, in every forward pass."""
    weight = self.weight.to(torch.float32)
    weight = edm2.normalize(weight, dim=dims_of_channel(weight))
    gain = 1.0 if gain is None else gain
    weight = (weight * (gain / math.sqrt(weight[0].numel()))).to(x.dtype)
    if weight.ndim == 2:
        return F.linear(x, weight)
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / edm2.SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def dropout_with(paused: Paused) -> Callable[..., Tensor]:
    """Keyed dropout that costs what torch's own does."""

    def apply(x: Tensor, keys: Tensor | None, site: int, p: float) -> Tensor:
        if keys is None or p == 0:
            return x
        drawn = torch.empty_like(x).bernoulli_(1 - p)
        with paused():
            drawn.copy_(dropout.keep_mask(keys, site, p, x[0].numel()).reshape(x.shape))
        return x * drawn.div_(1 - dropout.rounded(p) / 2**dropout.LANE)

    return apply


def apart(
    self: Preconditioned, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
) -> Prediction:
    """Real images in a pass of their own."""
    found: Prediction = FORWARD(self, x_t, level, cond._replace(real=None), want)
    if cond.real is None:
        return found
    keys = None if cond.dropout_keys is None else ~cond.dropout_keys
    theirs = Condition(cond.labels, cond.real_augment, keys, cond.text)
    return found._replace(real_logits=FORWARD(self, cond.real, level, theirs, Want.LOGITS).logits)


FORWARD = Preconditioned.forward


@contextmanager
def as_official(paused: Paused) -> Iterator[None]:
    """Inside, all EDM and EDM2 networks of this process run like that."""
    keyed = dropout_with(paused)
    with ExitStack() as stack:
        for home, name, other in (
            (edm_layers.Conv2d, "forward", conv2d),
            (edm_layers, "keyed_dropout", keyed),
            (edm_layers.UNetBlock, "forward", edm_block),
            (edm_layers.UNetBlock, "attention", edm_attention),
            (edm2.Block, "attention", edm2_attention),
            (edm2, "resample", resample),
            (edm2.MPConv, "forward", mp_conv),
            (edm2, "mp_silu", mp_silu),
            (edm2, "mp_sum", mp_sum),
            (edm2, "keyed_dropout", keyed),
            (Preconditioned, "forward", apart),
        ):
            stack.enter_context(mock.patch.object(home, name, other))
        yield


class OfficialRole(TorchRole):
    """A role in plain torch as the published loop has it.

    ``keeps_gradients``: they stay until the role's next phase, as SiD's fake score's do.
    """

    def __init__(
        self, module: nn.Module, adam: AdamSettings, rules: UpdateRules, keeps_gradients: bool
    ):
        super().__init__(module, adam, rules)
        self.keeps_gradients, self.updated = keeps_gradients, False
        betas = adam.beta1, adam.beta2
        self.optimizer: Any = torch.optim.Adam(module.parameters(), adam.lr, betas, adam.epsilon)

    @property
    def prepares(self) -> bool:
        return False

    def prepare(self) -> None:
        if self.updated:  # gradients of an accumulation's earlier passes stay
            self.optimizer.zero_grad(set_to_none=True)
            self.updated = False

    @torch.no_grad()
    def update(self) -> Tensor:
        for parameter in self._module.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        self.optimizer.step()
        if not self.keeps_gradients:
            self.optimizer.zero_grad(set_to_none=True)
        constrain_module(self._module, self.rules.constrain)
        self.updated = True
        return torch.tensor(True)

    @torch.no_grad()
    def average_into(self, average: nn.Module, beta: float) -> None:
        for mean, parameter in zip(average.parameters(), self._module.parameters(), strict=True):
            mean.copy_(parameter.detach().lerp(mean, beta))
