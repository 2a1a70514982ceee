"""The codec around diffusers' AutoencoderDC."""

from __future__ import annotations

import torch
from torch import Tensor

from sid_ray.denoisers.codecs import VAECodec


class DeepCodec(VAECodec):
    """A frozen AutoencoderDC around z = scale * m; its latents have no deviation."""

    def _posterior(self, pixels: Tensor) -> Tensor:
        latent = self.vae.encode(pixels).latent
        return torch.cat([latent, torch.zeros_like(latent)], dim=1)

    def _factor(self) -> int:
        return int(2 ** (len(self.vae.config.encoder_block_out_channels) - 1))
