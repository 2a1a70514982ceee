"""EDM teachers: the DDPM++ and NCSN++ U-Nets under EDM's preconditioning.

Module names are those of the published checkpoints, so that their weights load by name.

Symbols (EDM, table 1 and section 5)
    sigma, sigma_data   noise standard deviation of the input, standard deviation of the data
    c_skip, c_out, c_in, c_noise   preconditioning: D = c_skip x + c_out F(c_in x; c_noise)
    F, D                the raw network, the denoiser (an estimate of x_0)
    B, C, H, W          batch, channels, height, width      E   width of the embedding
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.denoisers.dropout import keyed_dropout
from sid_ray.schedules import image_shape
from sid_ray.types import Condition, Level, Prediction, Want

SQRT_HALF = math.sqrt(0.5)
GROUP_NORM_EPS = 1e-6  # every GroupNorm of the DDPM++ and NCSN++ networks


@dataclass(frozen=True)
class EDMNetwork:
    """Constructor arguments of an EDM teacher, named as in the published checkpoints.

    DDPM++ is ``embedding_type="positional", channel_mult_noise=1, encoder_type="standard",
    resample_filter=(1, 1)``; NCSN++ is ``"fourier", 2, "residual", (1, 3, 3, 1)``.
    """

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_type: str = "SongUNet"
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    channel_mult_noise: int = 1
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.10
    label_dropout: float = 0.0
    embedding_type: str = "positional"
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
    sigma_data: float = 0.5

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> EDMNetwork:
        """The inverse of to_json. Raises TypeError for an argument that EDM networks lack."""
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**arguments)


def xavier_uniform(shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float) -> Tensor:
    """gain * sqrt(6 / (fan_in + fan_out)) * U(-1, 1)."""
    return gain * math.sqrt(6 / (fan_in + fan_out)) * (torch.rand(shape) * 2 - 1)


class Linear(nn.Module):
    """y = x W^T + b, with parameters cast to the input's dtype at each call."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(xavier_uniform((n_out, n_in), n_in, n_out, gain))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Conv2d(nn.Module):
    """A convolution that may first resample by two with a fixed filter.

    kernel 0 resamples only. The bias comes last, after every resampling.
    """

    resample_filter: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        resample_filter: tuple[int, ...] = (1, 1),
        fused_resample: bool = False,
        gain: float = 1.0,
    ):
        super().__init__()
        self.up, self.down, self.fused_resample = up, down, fused_resample
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            fans = (n_in * kernel**2, n_out * kernel**2)
            shape = (n_out, n_in, kernel, kernel)
            self.weight = nn.Parameter(xavier_uniform(shape, *fans, gain))
            self.bias = nn.Parameter(torch.zeros(n_out))
        if up or down:
            taps = torch.tensor(resample_filter, dtype=torch.float32)
            self.register_buffer("resample_filter", taps.outer(taps)[None, None] / taps.sum() ** 2)
        self.weight_pad = kernel // 2
        self.filter_pad = (len(resample_filter) - 1) // 2

    def filter_up(self, x: Tensor, pad: int) -> Tensor:
        taps = self.resample_filter.to(x.dtype) * 4
        channels = x.shape[1]
        taps = taps.expand(channels, 1, -1, -1)
        return F.conv_transpose2d(x, taps, stride=2, padding=pad, groups=channels)

    def filter_down(self, x: Tensor, pad: int) -> Tensor:
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(x, taps, stride=2, padding=pad, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused_resample and self.down and self.weight is not None:
            x = F.conv2d(x, self.weight.to(x.dtype), padding=self.weight_pad + self.filter_pad)
            x = self.filter_down(x, pad=0)
        else:
            if self.up:
                x = self.filter_up(x, self.filter_pad)
            if self.down:
                x = self.filter_down(x, self.filter_pad)
            if self.weight is not None:
                x = F.conv2d(x, self.weight.to(x.dtype), padding=self.weight_pad)
        return x if self.bias is None else x + self.bias.to(x.dtype).reshape(1, -1, 1, 1)


class GroupNorm(nn.Module):
    """Group normalisation with min(32, C/4) groups."""

    def __init__(self, channels: int, eps: float = GROUP_NORM_EPS):
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.groups, weight, bias, self.eps)


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """Attention over pixels. qkv [B, 3C, H, W] -> [B, C, H, W].

    Channels of qkv are ordered (head, channel of the head, which of q, k, v): the layout of the
    published weights, not three consecutive thirds.
    """
    batch, _, height, width = qkv.shape
    q, k, v = qkv.reshape(batch, heads, -1, 3, height * width).transpose(2, 4).unbind(3)
    out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H*W, C/heads]
    return out.transpose(2, 3).reshape(batch, -1, height, width)


class UNetBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, embedding, norm, SiLU, dropout, convolution."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        emb: int,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        dropout: float = 0.0,
        resample_filter: tuple[int, ...] = (1, 1),
    ):
        super().__init__()
        self.dropout, self.attention = dropout, attention
        self.dropout_site = 0  # set by the network: which of its dropout layers this is
        resample: dict[str, Any] = {"up": up, "down": down, "resample_filter": resample_filter}
        self.norm0 = GroupNorm(n_in)
        self.conv0 = Conv2d(n_in, n_out, 3, **resample)
        self.affine = Linear(emb, n_out)
        self.norm1 = GroupNorm(n_out)
        self.conv1 = Conv2d(n_out, n_out, 3, gain=1e-5)
        self.skip = Conv2d(n_in, n_out, 1, **resample) if n_in != n_out or up or down else None
        if attention:
            self.norm2 = GroupNorm(n_out)
            self.qkv = Conv2d(n_out, n_out * 3, 1, gain=math.sqrt(0.2))
            self.proj = Conv2d(n_out, n_out, 1, gain=1e-5)

    def forward(self, x: Tensor, emb: Tensor, dropout_keys: Tensor | None) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None].to(h.dtype)))
        h = keyed_dropout(h, dropout_keys, self.dropout_site, self.dropout)
        h = self.conv1(h)
        x = (h + (x if self.skip is None else self.skip(x))) * SQRT_HALF
        if self.attention:
            x = (self.proj(self_attention(self.qkv(self.norm2(x)), heads=1)) + x) * SQRT_HALF
        return x


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
        self.register_buffer("freqs", torch.randn(channels // 2) * 16)

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = c_noise.outer(2 * math.pi * self.freqs.to(c_noise.dtype))
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class SongUNet(nn.Module):
    """The DDPM++ and NCSN++ U-Net. Returns (F, adversarial logits or None).

    The adversarial logits are the channel mean of the last encoder block's output,
    [B, 1, h, w]: no parameters of their own (SiDA, section 3).
    """

    def __init__(self, net: EDMNetwork):
        super().__init__()
        c, noise = net.model_channels, net.model_channels * net.channel_mult_noise
        emb = net.model_channels * net.channel_mult_emb
        self.net = net
        self.map_noise = (
            FourierEmbedding(noise)
            if net.embedding_type == "fourier"
            else PositionalEmbedding(noise, endpoint=True)
        )
        self.map_label = Linear(net.label_dim, noise) if net.label_dim else None
        self.map_augment = Linear(net.augment_dim, noise, bias=False) if net.augment_dim else None
        self.map_layer0 = Linear(noise, emb)
        self.map_layer1 = Linear(emb, emb)

        widths = [c * mult for mult in net.channel_mult]
        block = {"emb": emb, "dropout": net.dropout, "resample_filter": net.resample_filter}
        self.enc, skips = self._encoder(widths, block)
        self.dec = self._decoder(widths, skips, block)
        blocks = [m for m in self.modules() if isinstance(m, UNetBlock)]
        for site, module in enumerate(blocks):
            module.dropout_site = site

    def _encoder(self, widths: list[int], block: dict) -> tuple[nn.ModuleDict, list[int]]:
        """Layers from full resolution down, and the width of every skip they push."""
        net, filt = self.net, self.net.resample_filter
        enc, skips = nn.ModuleDict(), []
        width, aux_width = net.model_channels, net.img_channels
        for level, out_width in enumerate(widths):
            res = net.img_resolution >> level
            if level == 0:
                enc[f"{res}x{res}_conv"] = Conv2d(net.img_channels, width, 3)
            else:
                enc[f"{res}x{res}_down"] = UNetBlock(width, width, down=True, **block)
                if net.encoder_type == "skip":
                    enc[f"{res}x{res}_aux_down"] = Conv2d(
                        aux_width, aux_width, 0, down=True, resample_filter=filt
                    )
                    enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_width, width, 1)
                if net.encoder_type == "residual":
                    enc[f"{res}x{res}_aux_residual"] = Conv2d(
                        aux_width, width, 3, down=True, resample_filter=filt, fused_resample=True
                    )
                    aux_width = width
            skips.append(width)
            for index in range(net.num_blocks):
                attention = res in net.attn_resolutions
                enc[f"{res}x{res}_block{index}"] = UNetBlock(
                    width, out_width, attention=attention, **block
                )
                width = out_width
                skips.append(width)
        return enc, skips

    def _decoder(self, widths: list[int], skips: list[int], block: dict) -> nn.ModuleDict:
        """Layers from the lowest resolution up; consumes the skips' widths."""
        net, dec, width = self.net, nn.ModuleDict(), widths[-1]
        for level, out_width in reversed(list(enumerate(widths))):
            res = net.img_resolution >> level
            lowest = level == len(widths) - 1
            if lowest:
                dec[f"{res}x{res}_in0"] = UNetBlock(width, width, attention=True, **block)
                dec[f"{res}x{res}_in1"] = UNetBlock(width, width, **block)
            else:
                dec[f"{res}x{res}_up"] = UNetBlock(width, width, up=True, **block)
            for index in range(net.num_blocks + 1):
                attention = index == net.num_blocks and res in net.attn_resolutions
                dec[f"{res}x{res}_block{index}"] = UNetBlock(
                    width + skips.pop(), out_width, attention=attention, **block
                )
                width = out_width
            if net.decoder_type == "skip" or level == 0:
                if net.decoder_type == "skip" and not lowest:
                    dec[f"{res}x{res}_aux_up"] = Conv2d(
                        net.img_channels,
                        net.img_channels,
                        0,
                        up=True,
                        resample_filter=net.resample_filter,
                    )
                dec[f"{res}x{res}_aux_norm"] = GroupNorm(width)
                dec[f"{res}x{res}_aux_conv"] = Conv2d(width, net.img_channels, 3, gain=1e-5)
        return dec

    def embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """[B], [B, label_dim], [B, augment_dim] -> [B, E]."""
        cos, sin = self.map_noise(c_noise).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)  # the published networks swap the halves
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.net.label_dim))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def encode(self, x: Tensor, emb: Tensor, dropout_keys: Tensor | None) -> list[Tensor]:
        """The skips, last one last: what the decoder pops and the adversarial head reads."""
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                aux = layer(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + layer(aux)) * SQRT_HALF
            else:
                x = layer(x, emb, dropout_keys) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], emb: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """Skips -> F [B, C, H, W]."""
        x, skips = skips[-1], list(skips)
        aux: Tensor | None = None
        normed = x
        for name, layer in self.dec.items():
            if "aux_up" in name:
                aux = layer(aux)
            elif "aux_norm" in name:
                normed = layer(x)
            elif "aux_conv" in name:
                out = layer(F.silu(normed))
                aux = out if aux is None else out + aux
            else:
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, emb, dropout_keys)
        assert aux is not None  # every decoder ends in aux_conv
        return aux

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Condition, want: Want
    ) -> tuple[Tensor | None, Tensor | None]:
        emb = self.embed(c_noise, cond.labels, cond.augment)
        skips = self.encode(x, emb, cond.dropout_keys)
        logits = skips[-1].mean(dim=1, keepdim=True) if Want.LOGITS in want else None
        raw = self.decode(skips, emb, cond.dropout_keys) if Want.X0 in want else None
        return raw, logits


class EDMDenoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma)/4) (EDM, equation 7 and table 1).

    All arithmetic is in the parameters' precision, float32 at least.
    """

    def __init__(self, net: EDMNetwork):
        super().__init__()
        if net.model_type != "SongUNet":
            raise ValueError(f"model_type {net.model_type!r} is not built yet; known: SongUNet")
        self.net = net
        self.model = SongUNet(net)

    def forward(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        sd, sigma = self.net.sigma_data, image_shape(level.sigma)
        c_in = 1 / (sigma**2 + sd**2).sqrt()
        labels = cond.labels
        if self.net.label_dim and labels is None:
            labels = x_t.new_zeros(len(x_t), self.net.label_dim)
        raw, logits = self.model(c_in * x_t, level.t, cond._replace(labels=labels), want)
        if raw is None:
            return Prediction(logits=logits)
        c_skip = sd**2 / (sigma**2 + sd**2)
        c_out = sigma * sd * c_in
        return Prediction(x0=c_skip * x_t + c_out * raw, logits=logits)
