"""How pixels become a network's latents, and back: a contract beside ``Family``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sid_ray.denoisers.codecs import Standard, VAECodec


class LatentConvention:
    """One way to use an auto-encoder: what range its pixels have, and how latents are scaled.

    Attributes:
        name: in ``sid-ray data prepare --convention`` and in manifests of prepared sets.
        half: whether the auto-encoder may compute in float16 where a run is in half precision.
        scale: of latents, where their auto-encoder's config does not say it, as that of one in a
            file by itself; None where it must say it, or where nothing depends on it.
        usual_factor: of the published auto-encoder, where none is at hand (``factor``).
    """

    name: ClassVar[str]
    half: ClassVar[bool] = False
    scale: ClassVar[float | None] = None
    usual_factor: ClassVar[int] = 8

    def check(self, folder: Path) -> Any:
        """The config of the auto-encoder in a folder. Raises UserError where load would."""
        from sid_ray.denoisers.autoencoder import check_vae

        return check_vae(folder)

    def factor(self, config: Any) -> int:
        """By how much an auto-encoder of a config divides the sides of pictures."""
        return int(2 ** (len(config.block_out_channels) - 1))

    def dtype(self, precision: str, vae: nn.Module | None = None) -> torch.dtype:
        """What an auto-encoder, loaded, computes in beside networks of a precision.

        float16 beside bfloat16, too: that has 8 bits, as many as a pixel.
        """
        import torch

        return torch.float16 if self.half and precision != "float32" else torch.float32

    def load(self, folder: Path) -> nn.Module:
        """The auto-encoder of a folder, or of its part ``vae``. Raises UserError."""
        from sid_ray.denoisers.autoencoder import load_vae

        return load_vae(folder)

    def codec(self, vae: Any, batch: int) -> VAECodec:
        """The codec around a loaded auto-encoder, ``batch`` images at a time."""
        raise NotImplementedError

    def standard(self, vae: Path | None) -> Standard:
        """How latents are scaled, from the folder of their auto-encoder. Raises UserError."""
        raise NotImplementedError
