"""EDM2 teachers: the magnitude-preserving U-Net, the log-variance head, the published sizes.

Module names are those of the published checkpoints, so that their weights load by name.

Every layer keeps the magnitude of its activations, which needs weights of unit magnitude. It is
done twice (EDM2, section 2.3): inside the forward pass, always, so that gradients know of it; and
on the stored weights after each optimizer step, ``normalize_weights``, so that the effective
learning rate does not decay. The second is never part of forward: under ZeRO the optimizer's
master copy would undo it, and evaluating a network must not change it.

Symbols
    c_noise      ln(sigma)/4               F   the raw network
    B, C, H, W   batch, channels, height, width      E   width of the embedding
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.denoisers.arguments import NetworkArguments
from sid_ray.denoisers.attention import attend, head_count, merge_heads, split_heads
from sid_ray.denoisers.convolution import Ready, UnitWeight, convolve, convolve_unit
from sid_ray.denoisers.dropout import keyed_dropout, number_sites
from sid_ray.denoisers.edm_layers import scaled_draw
from sid_ray.denoisers.precondition import Preconditioned, RawOutput, run_unet
from sid_ray.denoisers.recompute import run_block
from sid_ray.types import Condition, Want

NORM_EPS = 1e-4
SILU_MAGNITUDE = 0.596  # root mean square of silu(N(0, 1))


@dataclass(frozen=True)
class EDM2Network(NetworkArguments):
    """Constructor arguments of an EDM2 teacher, named as in the published checkpoints.

    ``channel_mult_noise`` and ``channel_mult_emb`` None mean the first and the largest of
    ``channel_mult``. ``logvar`` False leaves out the log-variance head, as SiDA's generators do.
    The balances are weights of a sum's or concatenation's second member.
    """

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0
    channels_per_head: int = 64
    resample_filter: tuple[int, ...] = (1, 1)
    dropout: float = 0.0
    sigma_data: float = 0.5
    logvar_channels: int = 128
    logvar: bool = True

    def __post_init__(self) -> None:
        self.check_values()
        self.check_sizes(
            self.img_resolution, self.num_blocks, self.widths, self.noise_width, self.emb_width
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.model_channels * mult for mult in self.channel_mult)

    @property
    def noise_width(self) -> int:
        mult = self.channel_mult_noise
        return self.model_channels * (self.channel_mult[0] if mult is None else mult)

    @property
    def emb_width(self) -> int:
        mult = self.channel_mult_emb
        return self.model_channels * (max(self.channel_mult, default=0) if mult is None else mult)


# The published sizes, edm2-img512-xs and so on. The larger ones were trained with dropout.
_WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
_LATENT = EDM2Network(img_resolution=64, img_channels=4, label_dim=1000)
EDM2_PRESETS: dict[str, EDM2Network] = {
    f"edm2-{data}-{size}": replace(
        _LATENT,
        img_channels=channels,
        model_channels=_WIDTHS[size],
        dropout=0.0 if size in ("xxs", "xs", "s") else 0.1,
    )
    for data, channels, sizes in (
        ("img512", 4, ("xxs", "xs", "s", "m", "l", "xl", "xxl")),
        ("img64", 3, ("xs", "s", "m", "l", "xl")),
    )
    for size in sizes
}


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 stays, everything else is float32: the precision of norms and embeddings."""
    return torch.promote_types(dtype, torch.float32)


def normalize(x: Tensor, dim: int | Sequence[int]) -> Tensor:
    """x / (1e-4 + root mean square over dim)."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=at_least_float32(x.dtype))
    # Of the shape over dim alone: a number of all elements would hold an exported graph to a batch.
    count = math.prod(x.shape[d] for d in ((dim,) if isinstance(dim, int) else dim))
    rms = norm * math.sqrt(1 / count)
    return x / (NORM_EPS + rms).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """Magnitude-preserving SiLU (EDM2, equation 81)."""
    return F.silu(x).div_(SILU_MAGNITUDE)


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Magnitude-preserving sum, b's weight t (EDM2, equation 88)."""
    return a.lerp(b, t).div_(math.sqrt((1 - t) ** 2 + t**2))


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Magnitude-preserving concatenation over channels, b's weight t (EDM2, equation 103)."""
    total = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    scale_a = total * (1 - t) / math.sqrt(a.shape[1])
    scale_b = total * t / math.sqrt(b.shape[1])
    return torch.cat([a * scale_a, b * scale_b], dim=1)


def resample(x: Tensor, taps: tuple[int, ...], mode: str) -> Tensor:
    """Resampling by two with a separable filter: mode "up", "down" or "keep"."""
    if mode == "keep":
        return x
    if taps == (1, 1):  # the published networks: mean of 2 x 2 pixels, or each pixel four times
        return F.avg_pool2d(x, 2) if mode == "down" else F.interpolate(x, scale_factor=2)
    row = torch.tensor(taps, dtype=x.dtype, device=x.device)
    kernel = row.outer(row) / row.sum() ** 2 * (4 if mode == "up" else 1)
    kernel = kernel.expand(x.shape[1], 1, -1, -1)
    pad = (len(taps) - 1) // 2
    convolve = F.conv_transpose2d if mode == "up" else F.conv2d
    return convolve(x, kernel, stride=2, padding=pad, groups=x.shape[1])


class MPFourier(nn.Module):
    """[B] -> [B, channels]: sqrt(2) cos(x freqs + phases), fixed random frequencies.

    (EDM2, equation 75)
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", scaled_draw(torch.randn(channels), 2 * math.pi))
        self.register_buffer("phases", scaled_draw(torch.rand(channels), 2 * math.pi))

    def forward(self, x: Tensor) -> Tensor:
        freqs, phases = self.freqs.to(x.dtype), self.phases.to(x.dtype)
        return math.sqrt(2) * (x.outer(freqs) + phases).cos()


def unit_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight of unit magnitude over the square root of the fan-in."""
    scale = 1 / math.sqrt(weight[0].numel())
    found: Tensor = UnitWeight.apply(weight, scale, NORM_EPS, dtype)
    return found


class MPConv(Ready):
    """Convolution, or linear layer (kernel 0), with weights of unit magnitude and no bias.

    The weight is normalised for each output channel inside the forward pass, in float32, then cast
    to the input's precision (EDM2, equation 47). ``gained`` layers are called with a gain.
    """

    weight: nn.Parameter

    def __init__(self, n_in: int, n_out: int, kernel: int, gained: bool = False):
        super().__init__()
        self.gained = gained
        self.weight = nn.Parameter(torch.randn(n_out, n_in, *[kernel] * 2 if kernel else []))

    def made_ready(self, dtype: torch.dtype | None) -> Tensor:
        # Linear layers are embeddings, which are as precise as the weights; and a gain comes in
        # before a weight is cast.
        weight = self.weight
        wide = at_least_float32(weight.dtype)
        body = weight.ndim == 4 and not self.gained
        return unit_weight(weight, dtype if dtype is not None and body else wide)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        weight = self.ready
        if weight is None:
            own = self.weight  # once: an adapter makes it
            if gain is None and own.ndim == 4:
                return convolve_unit(x, own, NORM_EPS)
            weight = unit_weight(own, x.dtype if gain is None else at_least_float32(own.dtype))
        if gain is not None:
            weight = (weight * gain).to(x.dtype)
        return F.linear(x, weight) if weight.ndim == 2 else convolve(x, weight)


def forced_normalize(name: str, weight: Tensor) -> Tensor | None:
    """The value that a stored parameter takes after an optimizer step; None leaves it alone.

    Matrices and kernels are all MPConv weights, each output channel of which gets unit magnitude;
    scalars are gains (EDM2, equation 66). For a whole parameter of a ``name``, of any precision:
    computed in float32 at least, returned in the weight's own.
    """
    if weight.ndim < 2:
        return None
    wide = weight.detach().to(at_least_float32(weight.dtype))
    return normalize(wide, dim=tuple(range(1, wide.ndim))).to(weight.dtype)


@torch.no_grad()
def normalize_weights(module: nn.Module) -> None:
    """Forced weight normalisation, in place, of every MPConv weight in module.

    For weights that are their own masters. Where an optimizer keeps master copies apart, it is
    these that need ``forced_normalize``, and the working copies their new values.
    """
    for name, parameter in module.named_parameters():
        value = forced_normalize(name, parameter)
        if value is not None:
            parameter.copy_(value)


class Block(nn.Module):
    """Residual block of the encoder or decoder. x [B, n_in, H, W] -> [B, n_out, H', W']."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        net: EDM2Network,
        encoder: bool,
        mode: str = "keep",
        attention: bool = False,
    ):
        super().__init__()
        self.net, self.encoder, self.mode = net, encoder, mode
        self.heads = head_count(n_out, net.channels_per_head) if attention else 0
        self.dropout_site = 0  # set by the network: which of its dropout layers this is
        self.recompute = False  # denoisers.recompute sets it
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(n_out if encoder else n_in, n_out, 3)
        self.emb_linear = MPConv(net.emb_width, n_out, 0, gained=True)
        self.conv_res1 = MPConv(n_out, n_out, 3)
        self.conv_skip = MPConv(n_in, n_out, 1) if n_in != n_out else None
        if self.heads:
            self.attention_backend = "sdpa"
            self.attn_qkv = MPConv(n_out, n_out * 3, 1)
            self.attn_proj = MPConv(n_out, n_out, 1)

    def forward(self, x: Tensor, emb: Tensor, dropout_keys: Tensor | None) -> Tensor:
        net = self.net
        x = resample(x, net.resample_filter, self.mode)
        if self.encoder:
            x = x if self.conv_skip is None else self.conv_skip(x)
            x = normalize(x, dim=1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        y = self.conv_res1(keyed_dropout(y, dropout_keys, self.dropout_site, net.dropout))
        if not self.encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, net.res_balance)
        if self.heads:
            x = mp_sum(x, self.attention(x), net.attn_balance)
        return x.clamp(-net.clip_act, net.clip_act)

    def attention(self, x: Tensor) -> Tensor:
        """Cosine-like self-attention over pixels: q, k and v are normalised over a head."""
        q, k, v = normalize(split_heads(self.attn_qkv(x), self.heads), dim=-1).unbind()
        out = attend(q, k, v, self.attention_backend)
        return self.attn_proj(merge_heads(out, x))


class EDM2UNet(nn.Module):
    """The magnitude-preserving U-Net (EDM2, configuration G). Returns (F, adversarial logits)."""

    def __init__(self, net: EDM2Network):
        super().__init__()
        self.net = net
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(net.noise_width)
        self.emb_noise = MPConv(net.noise_width, net.emb_width, 0)
        self.emb_label = MPConv(net.label_dim, net.emb_width, 0) if net.label_dim else None
        self.enc, skips = self._encoder()
        self.dec = self._decoder(skips)
        self.out_conv = MPConv(net.widths[0], net.img_channels, 3, gained=True)
        number_sites(self)

    def _encoder(self) -> tuple[nn.ModuleDict, list[int]]:
        """Layers from full resolution down, and the width of every skip they push."""
        net, enc, skips = self.net, nn.ModuleDict(), []
        width = net.widths[0]
        for level, out_width in enumerate(net.widths):
            res = net.img_resolution >> level
            if level == 0:  # one more input channel: a constant 1 takes the place of biases
                enc[f"{res}x{res}_conv"] = MPConv(net.img_channels + 1, width, 3)
            else:
                enc[f"{res}x{res}_down"] = Block(width, width, net, encoder=True, mode="down")
            skips.append(width)
            for index in range(net.num_blocks):
                attention = res in net.attn_resolutions
                block = Block(width, out_width, net, encoder=True, attention=attention)
                enc[f"{res}x{res}_block{index}"] = block
                width = out_width
                skips.append(width)
        return enc, skips

    def _decoder(self, skips: list[int]) -> nn.ModuleDict:
        """Layers from the lowest resolution up; consumes the skips' widths."""
        net, dec, width = self.net, nn.ModuleDict(), self.net.widths[-1]
        for level, out_width in reversed(list(enumerate(net.widths))):
            res = net.img_resolution >> level
            if level == len(net.widths) - 1:
                dec[f"{res}x{res}_in0"] = Block(width, width, net, encoder=False, attention=True)
                dec[f"{res}x{res}_in1"] = Block(width, width, net, encoder=False)
            else:
                dec[f"{res}x{res}_up"] = Block(width, width, net, encoder=False, mode="up")
            for index in range(net.num_blocks + 1):
                attention = res in net.attn_resolutions
                dec[f"{res}x{res}_block{index}"] = Block(
                    width + skips.pop(), out_width, net, encoder=False, attention=attention
                )
                width = out_width
        return dec

    def embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """[B], [B, label_dim] -> [B, E]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None and labels is not None:
            label = self.emb_label(labels * math.sqrt(self.net.label_dim))
            emb = mp_sum(emb, label, self.net.label_balance)
        return mp_silu(emb)

    def encode(self, x: Tensor, emb: Tensor, dropout_keys: Tensor | None) -> list[Tensor]:
        """The skips, last one last: what the decoder pops and the adversarial head reads."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = run_block(layer, x, emb, dropout_keys) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], emb: Tensor, dropout_keys: Tensor | None) -> Tensor:
        """Skips -> F [B, C, H, W]."""
        x, skips = skips[-1], list(skips)
        for name, layer in self.dec.items():
            if "_block" in name:
                x = mp_cat(x, skips.pop(), self.net.concat_balance)
            x = run_block(layer, x, emb, dropout_keys)
        return self.out_conv(x, gain=self.out_gain)

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Condition, want: Want, own: int
    ) -> RawOutput:
        """(F in x's precision, adversarial logits in c_noise's), None what was not wanted.

        The logits are the channel mean of the last encoder block's output, [B, 1, h, w] (SiDA,
        section 3).
        """
        emb = self.embed(c_noise, cond.labels)
        return run_unet(self, x, emb, cond.dropout_keys, want, c_noise.dtype, own)


class EDM2Denoiser(Preconditioned):
    """D(x; sigma) and the log-variance u(sigma) of an EDM2 teacher."""

    def __init__(self, net: EDM2Network):
        super().__init__(net.sigma_data, net.label_dim)
        self.net = net
        self.unet = EDM2UNet(net)
        if net.logvar:
            self.logvar_fourier = MPFourier(net.logvar_channels)
            self.logvar_linear = MPConv(net.logvar_channels, 1, 0)

    def raw(self, x: Tensor, c_noise: Tensor, cond: Condition, want: Want, own: int) -> RawOutput:
        return self.unet(x, c_noise, cond, want, own)

    def logvar(self, c_noise: Tensor) -> Tensor | None:
        """u(sigma), [B] -> [B]: a function of the noise level alone."""
        if not self.net.logvar:
            return None
        return self.logvar_linear(self.logvar_fourier(c_noise)).squeeze(1)
