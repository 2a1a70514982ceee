"""Stable Diffusion 1.5 and 2.1: a U-Net that reads CLIP's text, in a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sid_ray.denoisers.family import (
    ATTENTION,
    BASES,
    FEED_FORWARD,
    PRECISIONS,
    Arguments,
    Family,
)
from sid_ray.denoisers.latents import LatentConvention
from sid_ray.denoisers.noise import VP_NOISE, scheduler_file
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sid_ray.denoisers.codecs import Standard, VAECodec
    from sid_ray.denoisers.family import LoraNames
    from sid_ray.denoisers.prompt_layout import PromptLayout
    from sid_ray.denoisers.single_file import SingleFile
    from sid_ray.denoisers.stock import StockPipeline
    from sid_ray.denoisers.text import TextEmbeddings

TOKENS = 77  # of a prompt
TEXT_WIDTH = 1280  # diffusers' default of cross_attention_dim


def told_sizes(recorded: Arguments) -> bool:
    """Whether a U-Net's config is SDXL's."""
    return recorded.get("addition_embed_type") == "text_time"


class ScaledLatents(LatentConvention):
    """Pixels in [-1, 1]; latents times one number, of the auto-encoder's config."""

    name = "sd"
    half = True  # as in SiD-LSG's half-precision runs
    scale: ClassVar[float] = 0.18215

    def load(self, folder: Path) -> nn.Module:
        from sid_ray.denoisers.autoencoder import says_scale

        vae: Any = super().load(folder)
        if not says_scale(folder):
            vae.register_to_config(scaling_factor=self.scale)
        return vae

    def codec(self, vae: Any, batch: int) -> VAECodec:
        from sid_ray.denoisers.codecs import stable_diffusion_codec

        return stable_diffusion_codec(vae, batch)

    def standard(self, vae: Path | None) -> Standard:
        from sid_ray.denoisers.codecs import Standard
        from sid_ray.denoisers.component import component_of

        if vae is None:
            raise UserError(
                "latents are scaled by the teacher's VAE, and it has none beside it: give "
                "--teacher.vae FOLDER, a diffusers folder with that vae"
            )
        path = component_of(vae, "vae") / "config.json"
        try:
            factor = float(json.loads(path.read_text()).get("scaling_factor", self.scale))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: no scaling factor of latents ({error})") from None
        return Standard((factor,))


class StableDiffusion(Family):
    name = "stable-diffusion"
    noise = VP_NOISE
    teacher_steps = 50
    precisions = PRECISIONS
    bases = BASES
    reads_text = True
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    text_classes: ClassVar = {"text_encoder": ("CLIPTextModel",)}
    latents = ScaledLatents()
    adversarial_features = "the channel mean of the middle block"
    adapter_targets = ATTENTION + FEED_FORWARD
    single_file = "model.diffusion_model."
    folder = "unet"
    parts: ClassVar[tuple[str, ...]] = ("vae", *text_parts, "scheduler")
    bare_prefix = "unet."
    official_classes = ("UNet2DConditionModel",)  # in SiD-LSG's files and in diffusers folders

    def takes(self, class_name: str, recorded: Arguments) -> bool:
        """All but SDXL's, which are told picture sizes; what neither can be is refused in words."""
        return super().takes(class_name, recorded) and not told_sizes(recorded)

    def build(self, network: Arguments) -> nn.Module:
        from sid_ray.denoisers.stable_diffusion import build_stable_diffusion

        return build_stable_diffusion(network)

    def shape(self, network: Arguments) -> tuple[int, int, int]:
        size = network.get("sample_size", 64)
        return network.get("in_channels", 4), size, size

    def at_resolution(self, network: Arguments, pixels: int, factor: int) -> Arguments:
        return dict(network) | {"sample_size": pixels // factor}

    def makes_latents(self, network: Arguments) -> bool:
        """Small U-Nets of this class make grey or coloured pixels."""
        return network.get("in_channels", 4) not in (1, 3)

    def written_out(self, network: Arguments) -> dict[str, Any]:
        from sid_ray.denoisers.stable_diffusion import unet_written_out

        return unet_written_out(network)

    def from_official(self, class_name: str, recorded: Arguments) -> dict[str, Any]:
        return {"prediction_type": "epsilon"} | dict(recorded)

    def beside(self, folder: Path) -> dict[str, Any]:
        """What the network predicts, which its scheduler says."""
        from sid_ray.tensor_files.tensors import json_object

        path = scheduler_file(folder)
        if not path.is_file():
            return {}
        return {"prediction_type": json_object(path).get("prediction_type", "epsilon")}

    def from_single_file(
        self, tensors: Mapping[str, Tensor], prediction_type: str
    ) -> SingleFile | None:
        """Of XL, too: what becomes of its folder is said by that folder's own config."""
        from sid_ray.denoisers.ldm_checkpoint import is_ldm, ldm_pipeline

        return ldm_pipeline(tensors, prediction_type) if is_ldm(tensors) else None

    def lora_names(self, tensors: dict[str, Tensor], network: Arguments) -> LoraNames:
        from sid_ray.denoisers.lora import kohya_unet_names

        return kohya_unet_names(tensors, network)

    def pipeline(self, network: Arguments, text: Path, factor: int) -> StockPipeline:
        from sid_ray.denoisers.stock import StockPipeline, stock_arguments, stock_encoders

        return StockPipeline(
            "StableDiffusionPipeline",
            self.folder,
            self.official_classes[0],
            stock_arguments(network, "prediction_type"),
            "AutoencoderKL",
            stock_encoders(text, self.text_classes),
            {"guidance_scale": 0.0},
            self.shape(network)[1],
            {
                "safety_checker": None,
                "feature_extractor": None,
                "image_encoder": None,
                "requires_safety_checker": False,
            },
        )

    def text_shape(self, network: Arguments) -> tuple[int, int]:
        return TOKENS, network.get("cross_attention_dim", TEXT_WIDTH)

    def layout(self, network: Arguments) -> PromptLayout:
        from sid_ray.denoisers.prompt_layout import PromptLayout

        return PromptLayout(*self.text_shape(network))

    def check_text(self, network: Arguments, folder: Path) -> None:
        from sid_ray.denoisers.clip_text import check_text_encoder

        own, reads = check_text_encoder(folder).hidden_size, network.get("cross_attention_dim")
        widths: set[int] = set(reads) if isinstance(reads, list | tuple) else {reads or own}
        if widths != {own}:
            raise UserError(
                f"the text encoder in {folder} makes embeddings of width {own}, the network reads "
                f"{', '.join(map(str, sorted(widths)))}: take the one that it was trained with"
            )

    def load_text(
        self,
        folder: Path | None,
        device: Any = "cpu",
        precision: str = "float32",
        network: Arguments | None = None,
    ) -> TextEmbeddings:
        from sid_ray.denoisers.clip_text import load_text

        assert folder is not None  # find_components has seen to it
        return load_text(folder, device, precision)

    def text_shape_of_folder(self, folder: Path) -> tuple[int, int]:
        from sid_ray.denoisers.clip_text import shape_of_encoder

        return shape_of_encoder(folder)


SPEC = StableDiffusion()
