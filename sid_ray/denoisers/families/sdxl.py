"""SDXL: a U-Net that reads two CLIPs' text and is told picture sizes, in a diffusers folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sid_ray.denoisers.families.stable_diffusion import SPEC as PLAIN
from sid_ray.denoisers.families.stable_diffusion import ScaledLatents, StableDiffusion, told_sizes
from sid_ray.denoisers.family import Arguments
from sid_ray.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sid_ray.denoisers.prompt_layout import PromptLayout
    from sid_ray.denoisers.stock import StockPipeline
    from sid_ray.denoisers.text import TextEmbeddings

TOLD_SIZES = ("original_size", "target_size")  # of the pipeline


class CarefulLatents(ScaledLatents):
    """Stable Diffusion's; the auto-encoder computes in float32 where its config says so: the
    published one overflows in float16.
    """

    name = "sdxl"
    scale = 0.13025

    def dtype(self, precision: str, vae: nn.Module | None = None) -> torch.dtype:
        import torch

        careful = vae is None or getattr(vae.config, "force_upcast", True)
        return torch.float32 if careful else super().dtype(precision, vae)


class SDXL(StableDiffusion):
    name = "sdxl"
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    text_classes: ClassVar = {
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
    }
    latents = CarefulLatents()
    parts = ("vae", *text_parts, "scheduler")

    def takes(self, class_name: str, recorded: Arguments) -> bool:
        return class_name in self.official_classes and told_sizes(recorded)

    def build(self, network: Arguments) -> nn.Module:
        from sid_ray.denoisers.sdxl import build_sdxl

        return build_sdxl(network)

    def shape(self, network: Arguments) -> tuple[int, int, int]:
        return PLAIN.shape({"sample_size": 128} | dict(network))

    def pipeline(self, network: Arguments, text: Path, factor: int) -> StockPipeline:
        """The network is told its size as with an auto-encoder of 8 pixels a latent."""
        from sid_ray.denoisers.sdxl import PIXELS
        from sid_ray.denoisers.sdxl_text import zeros_for_nothing

        plain, side = super().pipeline(network, text, factor), PIXELS * self.shape(network)[1]
        told = {} if factor == PIXELS else dict.fromkeys(TOLD_SIZES, (side, side))
        return replace(
            plain,
            class_name="StableDiffusionXLPipeline",
            call={**plain.call, **told},
            settings={
                "image_encoder": None,
                "feature_extractor": None,
                "force_zeros_for_empty_prompt": zeros_for_nothing(text),
            },
        )

    def text_shape(self, network: Arguments) -> tuple[int, int]:
        return self.layout(network).shape

    def layout(self, network: Arguments) -> PromptLayout:
        from sid_ray.denoisers.sdxl import prompt_layout

        return prompt_layout(network)

    def check_text(self, network: Arguments, folder: Path) -> None:
        from sid_ray.denoisers.sdxl_text import layout_of_encoders

        found, reads = layout_of_encoders(folder), self.layout(network)
        if found != reads:
            raise UserError(
                f"the text encoders in {folder} make {found.tokens} embeddings of width "
                f"{found.width} and a pooled one of {found.pooled}, the network reads "
                f"{reads.tokens} of {reads.width} and one of {reads.pooled}: take those that it "
                "was trained with"
            )

    def load_text(
        self,
        folder: Path | None,
        device: Any = "cpu",
        precision: str = "float32",
        network: Arguments | None = None,
    ) -> TextEmbeddings:
        from sid_ray.denoisers.sdxl_text import load_two_encoders

        assert folder is not None  # find_components has seen to it
        return load_two_encoders(folder, device, precision)

    def text_shape_of_folder(self, folder: Path) -> tuple[int, int]:
        from sid_ray.denoisers.sdxl_text import layout_of_encoders

        return layout_of_encoders(folder).shape

    def text_rules(self, folder: Path) -> str:
        from sid_ray.denoisers.sdxl_text import zeros_for_nothing

        return "zeros for the empty prompt" if zeros_for_nothing(folder) else ""


SPEC = SDXL()
