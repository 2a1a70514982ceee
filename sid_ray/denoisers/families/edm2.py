"""EDM2: magnitude-preserving teachers of ImageNet's latents or pixels (NVlabs/edm2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sid_ray.denoisers.families.edm import (
    EDM,
    LAST_BLOCK,
    inputs_of,
    levels_attended,
)
from sid_ray.denoisers.family import PRECISIONS, Arguments, Family
from sid_ray.denoisers.latents import LatentConvention
from sid_ray.denoisers.noise import EDM_NOISE
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sid_ray.denoisers.codecs import Standard, VAECodec

# Official class -> whether it has the log-variance head.
CLASSES = {
    "Precond": True,
    "EDM_2_Precond_EncoderDecoder": True,
    "EDM_2_Precond_Generator": False,
}
BY_PLACE = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_data",
    "logvar_channels",
)


class EDM2Latents(LatentConvention):
    """Pixels in [0, 1]; latents standardised a channel, whatever the auto-encoder's own factor."""

    name = "edm2"

    def codec(self, vae: Any, batch: int) -> VAECodec:
        from sid_ray.denoisers.codecs import edm2_codec

        return edm2_codec(vae, batch)

    def standard(self, vae: Path | None) -> Standard:
        from sid_ray.denoisers.codecs import edm2_standard

        return edm2_standard()


class EDM2(Family):
    name = "edm2"
    noise = EDM_NOISE
    teacher_steps = 32
    precisions = PRECISIONS
    latents = EDM2Latents()
    adversarial_features = LAST_BLOCK
    # ``bases`` is float32 alone, as EDM's: weights are normalised before they are cast.
    logvar_layer = "logvar_linear"  # it has one output: an adapter of any rank spans it
    adapter_targets = ("conv_res0", "conv_res1", "attn_qkv", "attn_proj", logvar_layer)
    loader = "edm2.py"
    training_only = ("logvar", "logvar_channels")
    official_classes = tuple(CLASSES)
    by_place = MappingProxyType({"Precond": BY_PLACE})

    shape, label_dim = EDM.shape, EDM.label_dim

    def build(self, network: Arguments) -> nn.Module:
        from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network

        try:
            return EDM2Denoiser(EDM2Network.from_json(dict(network)))
        except (TypeError, ValueError) as error:
            raise UserError(f"not an EDM2 network's arguments: {error}") from error

    def makes_latents(self, network: Arguments) -> bool:
        """The networks of 64x64 pixels have three channels, those of latents four."""
        return network["img_channels"] not in (1, 3)

    def logvar(self, network: Arguments) -> bool:
        return network.get("logvar", True)

    def written_out(self, network: Arguments) -> dict[str, Any]:
        """Widths as they come out; no width of a log-variance head that is not there."""
        from sid_ray.denoisers.edm2 import EDM2Network

        net = EDM2Network.from_json(dict(network))
        values = net.to_json() | {
            "channel_mult_noise": net.noise_width // net.model_channels,
            "channel_mult_emb": net.emb_width // net.model_channels,
            "logvar_channels": net.logvar_channels if net.logvar else 0,
        }
        return levels_attended(values)

    @staticmethod
    def constrain(name: str, weight: Tensor) -> Tensor | None:
        """Forced weight normalisation."""
        from sid_ray.denoisers.edm2 import forced_normalize

        return forced_normalize(name, weight)

    def adapted(self, network: Arguments, tensors: Mapping[str, Tensor]) -> Arguments:
        channels = inputs_of(tensors, "logvar_linear.weight")
        own = {"logvar": bool(channels)} | ({"logvar_channels": channels} if channels else {})
        return dict(network) | own

    def from_official(self, class_name: str, recorded: Arguments) -> dict[str, Any]:
        from sid_ray.denoisers.edm2 import EDM2Network

        own = {"logvar": CLASSES[class_name]}
        return EDM2Network.from_recorded(class_name, recorded, {}, own, ("logvar",))


SPEC = EDM2()
