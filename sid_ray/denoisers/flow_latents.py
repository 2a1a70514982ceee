"""Latents of SD3, FLUX and SANA: of auto-encoders that also shift them, or make no distribution.

Symbols
    q   what the auto-encoder makes of a picture        z   what the network sees
    z = scale (q - shift), of the auto-encoder's config
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sid_ray.denoisers.latents import LatentConvention
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from sid_ray.denoisers.codecs import Standard, VAECodec


class ConfiguredLatents(LatentConvention):
    """Latents scaled, and shifted where it says so, by the config of their auto-encoder, of the
    class ``kind``.
    """

    kind: ClassVar[str] = "AutoencoderKL"

    def check(self, folder: Path) -> Any:
        from sid_ray.denoisers.autoencoder import check_scale, check_vae

        found = check_vae(folder, self.kind)
        check_scale(folder)  # diffusers' class would take that of Stable Diffusion
        return found

    def load(self, folder: Path) -> nn.Module:
        from sid_ray.denoisers.autoencoder import check_scale, load_vae

        check_scale(folder)
        return load_vae(folder, self.kind)

    def standard(self, vae: Path | None) -> Standard:
        from sid_ray.denoisers.component import component_of
        from sid_ray.tensor_files.tensors import json_object

        if vae is None:
            raise UserError(
                "latents are scaled by the teacher's VAE, and it has none beside it: give "
                "--teacher.vae FOLDER, a diffusers folder with that vae"
            )
        path = component_of(vae, "vae") / "config.json"
        return standard_of(json_object(path), str(path))


def standard_of(config: Any, label: str) -> Standard:
    """Scale and bias of an auto-encoder's config. Raises UserError where it does not say them, or
    standardises each channel.
    """
    from sid_ray.denoisers.codecs import Standard

    for name in ("latents_mean", "latents_std"):
        if config.get(name) is not None:
            raise UserError(f"{label}: VAE option {name!r} is not supported")
    try:
        scale, shift = float(config["scaling_factor"]), float(config.get("shift_factor") or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{label}: no scaling factor of latents ({error})") from None
    return Standard((scale,), (-scale * shift,))


class ShiftedLatents(ConfiguredLatents):
    """SD3's and FLUX's: an AutoencoderKL of 16 channels, shifted, then scaled.

    In half precision beside networks in half precision, as their pipelines run it: other than
    SDXL's, these auto-encoders stay within float16's range.
    """

    name = "shifted"
    half = True

    def codec(self, vae: Any, batch: int) -> VAECodec:
        from sid_ray.denoisers.codecs import VAECodec

        return VAECodec(vae, *standard_of(vae.config, "the VAE's config"), batch=batch)


class DeepLatents(ConfiguredLatents):
    """SANA's: an AutoencoderDC, which makes a latent, no distribution: its deviation is 0.

    In float32 always: it overflows in float16, and bfloat16 has as many bits as a pixel.
    """

    name = "dc-ae"
    kind = "AutoencoderDC"
    usual_factor = 32

    def factor(self, config: Any) -> int:
        return int(2 ** (len(config.encoder_block_out_channels) - 1))

    def codec(self, vae: Any, batch: int) -> VAECodec:
        from sid_ray.denoisers.deep_codec import DeepCodec

        return DeepCodec(vae, *standard_of(vae.config, "the VAE's config"), batch=batch)
