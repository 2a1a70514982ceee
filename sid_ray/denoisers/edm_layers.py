"""Layers of the EDM teachers: what the DDPM++, NCSN++ and ADM networks are made of.

Parameter names, their order and the order of random draws are those of the published networks.
Parameters stay in their own precision and are cast to the input's at each call, so that one set
of float32 weights serves a float32 and a half-precision body.

Symbols
    B, C, H, W   batch, channels, height, width     E   width of the embedding
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.denoisers.attention import attend, head_count, merge_heads, split_heads
from sid_ray.denoisers.convolution import Ready, convolve
from sid_ray.denoisers.dropout import keyed_dropout


def is_laid_out() -> bool:
    """Whether modules that are made now have shapes and no numbers (on torch's meta device).

    Arithmetic is left out there: for it torch would load torch._dynamo, which takes seconds.
    """
    return torch.get_default_device().type == "meta"


def scaled_draw(drawn: Tensor, factor: float) -> Tensor:
    return drawn if is_laid_out() else drawn * factor


def kernel_of(taps: tuple[int, ...]) -> Tensor:
    """[1, 1, n, n] with a sum of 1, from the taps of a filter in one dimension."""
    if is_laid_out():
        return torch.empty(1, 1, len(taps), len(taps))
    row = torch.tensor(taps, dtype=torch.float32)
    return row.outer(row)[None, None] / row.sum() ** 2


@dataclass(frozen=True)
class Init:
    """How a layer's weight and bias start: a distribution and a multiplier for each.

    Both are drawn even where the multiplier is 0, so that a seed means the same network here and
    in the official code. "kaiming" has gain 1, unlike torch.nn.init's.
    """

    mode: str = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def draw(self, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Tensor:
        """One draw before the multiplier."""
        if is_laid_out():
            return torch.empty(shape)
        if self.mode == "xavier_uniform":
            return math.sqrt(6 / (fan_in + fan_out)) * (torch.rand(shape) * 2 - 1)
        if self.mode == "kaiming_uniform":
            return math.sqrt(3 / fan_in) * (torch.rand(shape) * 2 - 1)
        if self.mode == "kaiming_normal":
            return math.sqrt(1 / fan_in) * torch.randn(shape)
        raise ValueError(f"unknown initialiser {self.mode!r}")

    def parameters(
        self, shape: tuple[int, ...], fan_in: int, fan_out: int, bias: bool
    ) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Weight of a shape and bias [shape[0]], drawn in this order."""
        weight = nn.Parameter(scaled_draw(self.draw(shape, fan_in, fan_out), self.weight))
        if not bias:
            return weight, None
        return weight, nn.Parameter(scaled_draw(self.draw(shape[:1], fan_in, fan_out), self.bias))


class Linear(nn.Module):
    """y = x W^T + b."""

    def __init__(self, n_in: int, n_out: int, init: Init, bias: bool = True):
        super().__init__()
        self.weight, self.bias = init.parameters((n_out, n_in), n_in, n_out, bias)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Conv2d(Ready):
    """A convolution that may first resample by two with a fixed filter.

    kernel 0 resamples only. The bias comes last, after every resampling.
    """

    resample_filter: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        init: Init | None = None,
        up: bool = False,
        down: bool = False,
        resample_filter: tuple[int, ...] = (1, 1),
        fused_resample: bool = False,
    ):
        super().__init__()
        self.up, self.down, self.fused_resample = up, down, fused_resample
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            fans = (n_in * kernel**2, n_out * kernel**2)
            shape = (n_out, n_in, kernel, kernel)
            self.weight, self.bias = (init or Init()).parameters(shape, *fans, bias=True)
        if up or down:
            self.register_buffer("resample_filter", kernel_of(resample_filter))
        self.plain_resample = tuple(resample_filter) == (1, 1)
        self.weight_pad = kernel // 2
        self.filter_pad = (len(resample_filter) - 1) // 2

    def filter_up(self, x: Tensor, pad: int) -> Tensor:
        if self.plain_resample:  # each pixel four times
            return F.interpolate(x, scale_factor=2)
        channels = x.shape[1]
        taps = (self.resample_filter * 4).to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv_transpose2d(x, taps, stride=2, padding=pad, groups=channels)

    def filter_down(self, x: Tensor, pad: int) -> Tensor:
        if self.plain_resample:  # the mean of 2 x 2 pixels
            return F.avg_pool2d(x, 2, padding=pad)
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(x, taps, stride=2, padding=pad, groups=channels)

    def made_ready(self, dtype: torch.dtype | None) -> Tensor:
        assert self.weight is not None
        return self.weight.detach().to(dtype or self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight if self.ready is None else self.ready  # once: an adapter makes it
        if weight is None:
            return self.resample(x)
        weight = weight.to(x.dtype)
        if not (self.fused_resample and self.down):
            return convolve(self.resample(x), weight, bias)
        # The published order: convolution, filter, bias.
        x = F.conv2d(x, weight, padding=self.weight_pad + self.filter_pad)
        assert bias is not None
        return self.filter_down(x, pad=0) + bias.reshape(1, -1, 1, 1)

    def resample(self, x: Tensor) -> Tensor:
        """Before the convolution: up or down by two, or neither."""
        if self.up:
            x = self.filter_up(x, self.filter_pad)
        return self.filter_down(x, self.filter_pad) if self.down else x


class GroupNorm(nn.Module):
    """Group normalisation with min(32, C/4) groups."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        if not self.groups or channels % self.groups:
            raise ValueError(f"{channels} channels do not split into {self.groups} groups")
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.groups, weight, bias, self.eps)


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of one network share.

    ``adaptive_scale`` lets the embedding scale and shift (ADM) instead of shift only (DDPM++);
    ``resample_proj`` gives a resampling block's skip a 1x1 convolution even at equal width;
    ``channels_per_head`` None means a single head. ``init_zero`` starts the last convolution of
    each branch, ``init_attn`` the qkv convolution.
    """

    emb: int
    dropout: float
    resample_filter: tuple[int, ...]
    skip_scale: float
    eps: float
    resample_proj: bool
    adaptive_scale: bool
    channels_per_head: int | None
    init: Init
    init_zero: Init
    init_attn: Init

    def heads(self, channels: int) -> int:
        """Attention heads at a width."""
        return 1 if self.channels_per_head is None else head_count(channels, self.channels_per_head)


class UNetBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, embedding, norm, SiLU, dropout, convolution.

    x [B, n_in, H, W], emb [B, E] -> [B, n_out, H', W'].
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        style: BlockStyle,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ):
        super().__init__()
        self.style = style
        self.heads = style.heads(n_out) if attention else 0
        self.dropout_site = 0  # set by the network: which of its dropout layers this is
        self.recompute = False  # denoisers.recompute sets it
        resample: dict[str, Any] = {
            "up": up,
            "down": down,
            "resample_filter": style.resample_filter,
        }
        self.norm0 = GroupNorm(n_in, style.eps)
        self.conv0 = Conv2d(n_in, n_out, 3, style.init, **resample)
        self.affine = Linear(style.emb, n_out * (1 + style.adaptive_scale), style.init)
        self.norm1 = GroupNorm(n_out, style.eps)
        self.conv1 = Conv2d(n_out, n_out, 3, style.init_zero)
        self.skip: Conv2d | None = None
        if n_in != n_out or up or down:
            kernel = 1 if n_in != n_out or style.resample_proj else 0
            self.skip = Conv2d(n_in, n_out, kernel, style.init, **resample)
        if self.heads:
            self.attention_backend = "sdpa"
            self.norm2 = GroupNorm(n_out, style.eps)
            self.qkv = Conv2d(n_out, n_out * 3, 1, style.init_attn)
            self.proj = Conv2d(n_out, n_out, 1, style.init_zero)

    def forward(self, x: Tensor, emb: Tensor, dropout_keys: Tensor | None) -> Tensor:
        style = self.style
        h = self.conv0(F.silu(self.norm0(x)))
        affine = self.affine(emb)[:, :, None, None].to(h.dtype)
        if style.adaptive_scale:
            scale, shift = affine.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + affine))
        h = keyed_dropout(h, dropout_keys, self.dropout_site, style.dropout)
        x = (self.conv1(h) + (x if self.skip is None else self.skip(x))) * style.skip_scale
        return self.attention(x) if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        """Residual self-attention over pixels, [B, C, H, W] -> the same."""
        q, k, v = split_heads(self.qkv(self.norm2(x)), self.heads).unbind()
        out = merge_heads(attend(q, k, v, self.attention_backend), x)
        return (self.proj(out) + x) * self.style.skip_scale


class PositionalEmbedding(nn.Module):
    """[B] -> [B, channels]: [cos, sin] of c_noise at geometric frequencies."""

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.num_phases, self.endpoint = channels // 2, endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        index = torch.arange(self.num_phases, dtype=c_noise.dtype, device=c_noise.device)
        phase = c_noise.outer((1 / 10000) ** (index / (self.num_phases - self.endpoint)))
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """[B] -> [B, channels]: [cos, sin] of c_noise at fixed random frequencies."""

    freqs: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", scaled_draw(torch.randn(channels // 2), 16))

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise.outer(2 * math.pi * self.freqs.to(c_noise.dtype))
        return torch.cat([phase.cos(), phase.sin()], dim=1)
