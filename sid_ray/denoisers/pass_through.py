"""An AutoencoderKL that returns what it is given, for networks of pixels in pipelines that decode.

Its last layers, a group norm and SiLU, are no identity by themselves. Two channels are constants
+M and -M, much larger than pixels: they make the norm's mean 0 and its deviation constant, about
M/2, so that it divides by that and does no more. Each channel x goes through with its sign turned,
too, because

    silu(a) - silu(-a) = a

All residual branches are 0. What remains is rounding, and a relative error below 3 (x / M)^2.

Diffusers is imported inside functions only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.component import require_diffusers

M = 4096.0  # a power of two: +M and -M cancel to the bit
WIDTH = 8  # M's two channels and two for each of up to three colours
NO_NOISE = -30.0  # log-variance of what the encoder returns


@torch.no_grad()
def pass_through_vae(channels: int) -> nn.Module:
    """For images of up to three channels, in [-1, 1]; one latent is one pixel."""
    require_diffusers()
    from diffusers import AutoencoderKL

    if channels > (WIDTH - 2) // 2:
        raise ValueError(f"{channels} channels do not pass through {WIDTH}")
    vae: Any = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(WIDTH,),
        layers_per_block=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
        force_upcast=False,
    )
    for name, value in vae.named_parameters():
        value.fill_(1.0 if name.endswith(("norm1.weight", "norm2.weight")) else 0.0)
    for half in (vae.encoder, vae.decoder):
        half.conv_norm_out.weight.fill_(1.0)
        half.conv_in.bias[:2] = torch.tensor([M, -M])
        both_signs(half.conv_in.weight[2:, :, 1, 1], 1.0)
        both_signs(half.conv_out.weight[:channels, 2:, 1, 1].T, M * (2 / WIDTH) ** 0.5)
    vae.encoder.conv_out.bias[channels:] = NO_NOISE
    return vae.eval().requires_grad_(False)


def both_signs(matrix: Tensor, factor: float) -> None:
    """Sets [2 C and more, C] to x -> factor (x, -x), in place; other rows are 0."""
    count = matrix.shape[1]
    one = factor * torch.eye(count)
    matrix[: 2 * count] = torch.cat([one, -one])
