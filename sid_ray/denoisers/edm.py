"""EDM teachers: the DDPM++, NCSN++ and ADM U-Nets under EDM's preconditioning.

Module names are those of the published checkpoints, so that their weights load by name.

Symbols
    c_noise      what the network is told of the noise level: ln(sigma)/4
    F            the raw network (precondition.py makes an estimate of x_0 of it)
    B, C, H, W   batch, channels, height, width      E   width of the embedding
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.denoisers.arguments import NetworkArguments
from sid_ray.denoisers.dropout import keep_mask, number_sites
from sid_ray.denoisers.edm_layers import (
    BlockStyle,
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    UNetBlock,
)
from sid_ray.denoisers.precondition import Preconditioned, RawOutput, run_unet
from sid_ray.denoisers.recompute import run_block
from sid_ray.types import Condition, Want

SQRT_HALF = math.sqrt(0.5)
CHOICES = {
    "model_type": ("SongUNet", "DhariwalUNet"),
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
}
SONG_ONLY = (
    "channel_mult_noise",
    "embedding_type",
    "encoder_type",
    "decoder_type",
    "resample_filter",
)


@dataclass(frozen=True)
class EDMNetwork(NetworkArguments):
    """Constructor arguments of an EDM teacher, named as in the published checkpoints.

    DDPM++ is ``embedding_type="positional", channel_mult_noise=1, encoder_type="standard",
    resample_filter=(1, 1)``; NCSN++ is ``"fourier", 2, "residual", (1, 3, 3, 1)``; ADM is
    ``model_type="DhariwalUNet"`` and knows none of these. The defaults are DDPM++'s.
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

    def __post_init__(self) -> None:
        self.check_values()
        self.check_sizes(
            self.img_resolution, self.num_blocks, self.widths, self.noise_width, self.emb_width
        )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, found {getattr(self, name)!r}")
        if self.model_type == "DhariwalUNet":
            for field in fields(self):
                if field.name in SONG_ONLY and getattr(self, field.name) != field.default:
                    raise ValueError(f"a DhariwalUNet has no {field.name}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def noise_width(self) -> int:
        return self.model_channels * self.channel_mult_noise

    @property
    def emb_width(self) -> int:
        return self.model_channels * self.channel_mult_emb


class EDMUNet(nn.Module):
    """What the two U-Nets share: the encoder's and decoder's skeleton and how they run.

    A subclass sets the mapping layers, then calls ``_build_body``, then adds its head. ``enc`` and
    ``dec`` are flat dictionaries in the order of the published networks; the names decide how a
    layer is run.
    """

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def __init__(self, net: EDMNetwork):
        super().__init__()
        self.net = net

    def _build_body(self, style: BlockStyle, first_width: int) -> None:
        self.enc, skips = self._encoder(style, first_width)
        self.dec = self._decoder(style, skips)
        self.label_site = number_sites(self)

    def _encoder(self, style: BlockStyle, width: int) -> tuple[nn.ModuleDict, list[int]]:
        """Layers from full resolution down, and the width of every skip they push."""
        net, enc, skips = self.net, nn.ModuleDict(), []
        aux_width = net.img_channels
        for level, out_width in enumerate(net.widths):
            res = net.img_resolution >> level
            if level == 0:
                enc[f"{res}x{res}_conv"] = Conv2d(net.img_channels, width, 3, style.init)
            else:
                enc[f"{res}x{res}_down"] = UNetBlock(width, width, style, down=True)
                aux: dict[str, Any] = {"down": True, "resample_filter": net.resample_filter}
                if net.encoder_type == "skip":
                    enc[f"{res}x{res}_aux_down"] = Conv2d(aux_width, aux_width, 0, **aux)
                    enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_width, width, 1, style.init)
                if net.encoder_type == "residual":
                    enc[f"{res}x{res}_aux_residual"] = Conv2d(
                        aux_width, width, 3, style.init, fused_resample=True, **aux
                    )
                    aux_width = width
            skips.append(width)
            for index in range(net.num_blocks):
                attention = res in net.attn_resolutions
                block = UNetBlock(width, out_width, style, attention=attention)
                enc[f"{res}x{res}_block{index}"] = block
                width = out_width
                skips.append(width)
        return enc, skips

    def _decoder(self, style: BlockStyle, skips: list[int]) -> nn.ModuleDict:
        """Layers from the lowest resolution up; consumes the skips' widths."""
        net, dec, width = self.net, nn.ModuleDict(), self.net.widths[-1]
        for level, out_width in reversed(list(enumerate(net.widths))):
            res = net.img_resolution >> level
            if level == len(net.widths) - 1:
                dec[f"{res}x{res}_in0"] = UNetBlock(width, width, style, attention=True)
                dec[f"{res}x{res}_in1"] = UNetBlock(width, width, style)
            else:
                dec[f"{res}x{res}_up"] = UNetBlock(width, width, style, up=True)
            for index in range(net.num_blocks + 1):
                attention = res in net.attn_resolutions and self._attends(index)
                dec[f"{res}x{res}_block{index}"] = UNetBlock(
                    width + skips.pop(), out_width, style, attention=attention
                )
                width = out_width
            self._add_level_head(dec, style, level, width)
        return dec

    def _attends(self, index: int) -> bool:
        """Whether the decoder's block of this index has attention where its level has."""
        raise NotImplementedError

    def _add_level_head(
        self, dec: nn.ModuleDict, style: BlockStyle, level: int, width: int
    ) -> None:
        """Adds the layers that turn a decoder level into an image, where the network has them."""

    def embed(self, c_noise: Tensor, cond: Condition) -> Tensor:
        """[B], labels [B, label_dim], augment [B, augment_dim] -> [B, E]."""
        raise NotImplementedError

    def _labels(self, cond: Condition) -> Tensor | None:
        """Labels after label dropout: whole rows fall with probability label_dropout."""
        if cond.labels is None or cond.dropout_keys is None or not self.net.label_dropout:
            return cond.labels
        keep = keep_mask(cond.dropout_keys, self.label_site, self.net.label_dropout, 1)
        return cond.labels * keep

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
                block = isinstance(layer, UNetBlock)
                x = run_block(layer, x, emb, dropout_keys) if block else layer(x)
                skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], emb: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """Skips -> F [B, C, H, W]."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Condition, want: Want, own: int
    ) -> RawOutput:
        """(F in x's precision, adversarial logits in c_noise's), None what was not wanted.

        The logits are the channel mean of the last encoder block's output, [B, 1, h, w]: no
        parameters of their own (SiDA, section 3). Embeddings are computed in c_noise's precision.
        """
        emb = self.embed(c_noise, cond)
        return run_unet(self, x, emb, cond.dropout_keys, want, c_noise.dtype, own)


class SongUNet(EDMUNet):
    """The DDPM++ and NCSN++ U-Net (Song et al., 2021, as EDM runs it)."""

    def __init__(self, net: EDMNetwork):
        super().__init__(net)
        noise, emb = net.noise_width, net.emb_width
        init = Init("xavier_uniform")
        self.map_noise = (
            FourierEmbedding(noise)
            if net.embedding_type == "fourier"
            else PositionalEmbedding(noise, endpoint=True)
        )
        self.map_label = Linear(net.label_dim, noise, init) if net.label_dim else None
        self.map_augment = (
            Linear(net.augment_dim, noise, init, bias=False) if net.augment_dim else None
        )
        self.map_layer0 = Linear(noise, emb, init)
        self.map_layer1 = Linear(emb, emb, init)
        style = BlockStyle(
            emb=emb,
            dropout=net.dropout,
            resample_filter=net.resample_filter,
            skip_scale=SQRT_HALF,
            eps=1e-6,
            resample_proj=True,
            adaptive_scale=False,
            channels_per_head=None,
            init=init,
            init_zero=Init("xavier_uniform", weight=1e-5),
            init_attn=Init("xavier_uniform", weight=math.sqrt(0.2)),
        )
        self._build_body(style, first_width=net.model_channels)

    def _attends(self, index: int) -> bool:
        return index == self.net.num_blocks

    def _add_level_head(
        self, dec: nn.ModuleDict, style: BlockStyle, level: int, width: int
    ) -> None:
        net, res = self.net, self.net.img_resolution >> level
        if net.decoder_type == "standard" and level > 0:
            return
        if net.decoder_type == "skip" and level < len(net.widths) - 1:
            dec[f"{res}x{res}_aux_up"] = Conv2d(
                net.img_channels, net.img_channels, 0, up=True, resample_filter=net.resample_filter
            )
        dec[f"{res}x{res}_aux_norm"] = GroupNorm(width, style.eps)
        dec[f"{res}x{res}_aux_conv"] = Conv2d(width, net.img_channels, 3, style.init_zero)

    def embed(self, c_noise: Tensor, cond: Condition) -> Tensor:
        cos, sin = self.map_noise(c_noise).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)  # the published networks swap the halves
        labels = self._labels(cond)
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels * math.sqrt(self.net.label_dim))
        if self.map_augment is not None and cond.augment is not None:
            emb = emb + self.map_augment(cond.augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def decode(self, skips: list[Tensor], emb: Tensor, dropout_keys: Tensor | None) -> Tensor:
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
                x = run_block(layer, x, emb, dropout_keys)
        assert aux is not None  # every decoder ends in aux_conv
        return aux


class DhariwalUNet(EDMUNet):
    """The ADM U-Net (Dhariwal and Nichol, 2021, as EDM runs it)."""

    def __init__(self, net: EDMNetwork):
        super().__init__(net)
        c, emb = net.model_channels, net.emb_width
        init = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
        init_zero = Init("kaiming_uniform", weight=0.0, bias=0.0)
        self.map_noise = PositionalEmbedding(c, endpoint=False)
        self.map_augment = (
            Linear(net.augment_dim, c, init_zero, bias=False) if net.augment_dim else None
        )
        self.map_layer0 = Linear(c, emb, init)
        self.map_layer1 = Linear(emb, emb, init)
        self.map_label: Linear | None = None
        if net.label_dim:
            normal = Init("kaiming_normal", weight=math.sqrt(net.label_dim))
            self.map_label = Linear(net.label_dim, emb, normal, bias=False)
        style = BlockStyle(
            emb=emb,
            dropout=net.dropout,
            resample_filter=net.resample_filter,
            skip_scale=1.0,
            eps=1e-5,
            resample_proj=False,
            adaptive_scale=True,
            channels_per_head=64,
            init=init,
            init_zero=init_zero,
            init_attn=init,
        )
        self._build_body(style, first_width=net.widths[0])
        self.out_norm = GroupNorm(net.widths[0], style.eps)
        self.out_conv = Conv2d(net.widths[0], net.img_channels, 3, init_zero)

    def _attends(self, index: int) -> bool:
        return True

    def embed(self, c_noise: Tensor, cond: Condition) -> Tensor:
        emb = self.map_noise(c_noise)
        labels = self._labels(cond)
        if self.map_augment is not None and cond.augment is not None:
            emb = emb + self.map_augment(cond.augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and labels is not None:
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def decode(self, skips: list[Tensor], emb: Tensor, dropout_keys: Tensor | None) -> Tensor:
        x, skips = skips[-1], list(skips)
        for name, layer in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = run_block(layer, x, emb, dropout_keys)
        return self.out_conv(F.silu(self.out_norm(x)))


UNETS: dict[str, type[EDMUNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class EDMDenoiser(Preconditioned):
    """D(x; sigma) of an EDM teacher. It has no log-variance head."""

    def __init__(self, net: EDMNetwork):
        super().__init__(net.sigma_data, net.label_dim)
        self.net = net
        self.model = UNETS[net.model_type](net)

    def raw(self, x: Tensor, c_noise: Tensor, cond: Condition, want: Want, own: int) -> RawOutput:
        return self.model(x, c_noise, cond, want, own)
