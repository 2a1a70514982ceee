"""Between images and the space a denoiser works in: nothing, or a variational auto-encoder.

Symbols
    B, C, h, w   batch, latent channels, latent height and width (an eighth of the image's)
    m, s         mean and standard deviation of the encoder's posterior
    z            latents = scale * (m + s * noise) + bias, standardised for the denoiser
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sid_ray.errors import UserError

# EDM2 (arXiv:2312.02696, section B.1): statistics of the latents of ImageNet-512, a channel each.
EDM2_RAW_MEAN = (5.81, 3.25, 0.12, -2.15)
EDM2_RAW_STD = (4.17, 4.62, 3.71, 3.28)
EDM2_FINAL_STD = 0.5  # sigma_data


class Standard(NamedTuple):
    """What standardises latents, z = scale * x + bias: one number, or one a channel."""

    scale: tuple[float, ...]
    bias: tuple[float, ...] = (0.0,)


def edm2_standard() -> Standard:
    """A channel each to mean 0 and standard deviation 0.5."""
    scale = tuple(EDM2_FINAL_STD / std for std in EDM2_RAW_STD)
    bias = tuple(-mean * factor for mean, factor in zip(EDM2_RAW_MEAN, scale, strict=True))
    return Standard(scale, bias)


def from_moments(moments: Tensor, noise: Tensor | None, standard: Standard) -> Tensor:
    """m and s [B, 2C, h, w] and N(0,1) noise [B, C, h, w] -> latents; no noise: the mean."""
    mean, std = moments.chunk(2, dim=1)
    sample = mean if noise is None else mean + std * noise.to(std)
    return sample * channels(standard.scale, sample) + channels(standard.bias, sample)


def channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers of the channels, in the shape that multiplies latents."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)


class Codec(Protocol):
    """Images [B, 3, H, W] in [-1, 1] to latents [B, C, h, w] and back."""

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def decode_at_once(self, latents: Tensor) -> Tensor:
        """The same in one call whatever the batch, with gradients where they are on: for graphs
        that others run.
        """
        ...

    def decode_uint8(self, latents: Tensor) -> Tensor: ...

    def picture_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """(C, H, W) of the picture that latents (C, h, w) are decoded to."""
        ...


class IdentityCodec:
    """Denoisers of pixels: latents are images."""

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def decode_at_once(self, latents: Tensor) -> Tensor:
        return latents

    def decode_uint8(self, latents: Tensor) -> Tensor:
        """[-1, 1] -> 0..255 by truncation of 127.5 x + 128."""
        return (latents * 127.5 + 128).clip(0, 255).to(torch.uint8)

    def picture_shape(self, shape: Sequence[int]) -> Sequence[int]:
        return shape


@dataclass(frozen=True)
class VAECodec:
    """A frozen AutoencoderKL around z = scale * (m + s * noise) + bias.

    Args:
        vae: the auto-encoder (diffusers' AutoencoderKL).
        scale, bias: one number, or one a latent channel.
        unit_pixels: the auto-encoder is fed pixels in [0, 1] (EDM2), not [-1, 1].
        batch: samples an encoder or decoder call, to bound memory; 1 is what diffusers calls
            slicing.
    """

    vae: Any
    scale: tuple[float, ...]
    bias: tuple[float, ...] = (0.0,)
    unit_pixels: bool = False
    batch: int = 8

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> m and s [B, 2C, h, w]: what a data set stores."""
        parts = []
        for chunk in images.split(self.batch):
            pixels = (chunk + 1) / 2 if self.unit_pixels else chunk
            parts.append(self._posterior(pixels.to(self.vae.device, self.vae.dtype)))
        return torch.cat(parts)

    def _posterior(self, pixels: Tensor) -> Tensor:
        """m and s [B, 2C, h, w] of the auto-encoder's own pixels."""
        posterior = self.vae.encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def from_moments(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """m and s [B, 2C, h, w] and N(0,1) noise [B, C, h, w] -> latents; no noise: the mean."""
        return from_moments(moments, noise, Standard(self.scale, self.bias))

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.from_moments(self.encode_moments(images), noise)

    @torch.no_grad()
    def _pixels(self, latents: Tensor) -> Tensor:
        """Latents -> the decoder's pixels [B, 3, H, W], not clipped, in the VAE's own range."""
        return torch.cat([self._own_pixels(chunk) for chunk in latents.split(self.batch)])

    def _own_pixels(self, latents: Tensor) -> Tensor:
        raw = (latents - channels(self.bias, latents)) / channels(self.scale, latents)
        found: Tensor = self.vae.decode(raw.to(self.vae.device, self.vae.dtype)).sample
        return found

    def decode_at_once(self, latents: Tensor) -> Tensor:
        pixels = self._own_pixels(latents)
        return pixels * 2 - 1 if self.unit_pixels else pixels

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W], [-1, 1] but not clipped."""
        pixels = self._pixels(latents)
        return pixels * 2 - 1 if self.unit_pixels else pixels

    def decode_uint8(self, latents: Tensor) -> Tensor:
        """Latents -> 0..255 by truncation: of 255 p for pixels in [0, 1], else of 127.5 p + 128.

        The two conventions are half a grey level apart; both are the published ones.
        """
        pixels = self._pixels(latents).float()
        scaled = pixels * 255 if self.unit_pixels else pixels * 127.5 + 128
        return scaled.clip(0, 255).to(torch.uint8)

    def picture_shape(self, shape: Sequence[int]) -> Sequence[int]:
        factor = self._factor()
        return 3, factor * shape[1], factor * shape[2]

    def _factor(self) -> int:
        """By how much the auto-encoder divides the sides of pictures."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


def stable_diffusion_codec(vae: Any, batch: int = 8) -> VAECodec:
    """Stable Diffusion's latents: the posterior times the VAE's own scaling_factor (0.18215).

    Raises UserError for an auto-encoder that also shifts or standardises its latents.
    """
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if getattr(vae.config, name, None) is not None:
            raise UserError(f"VAE option {name!r} is not supported: not Stable Diffusion 1 or 2")
    return VAECodec(vae, (float(vae.config.scaling_factor),), batch=batch)


def edm2_codec(vae: Any, batch: int = 8) -> VAECodec:
    """EDM2's latents: standardised a channel to standard deviation 0.5; pixels in [0, 1].

    The VAE's scaling_factor is not used. Source: EDM2's published statistics.
    """
    return VAECodec(vae, *edm2_standard(), unit_pixels=True, batch=batch)
