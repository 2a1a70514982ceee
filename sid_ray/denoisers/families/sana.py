"""SANA: a transformer with linear attention on strongly compressed latents, which reads Gemma-2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sid_ray.denoisers.family import ATTENTION, Arguments
from sid_ray.denoisers.flow_family import FlowFamily
from sid_ray.denoisers.flow_latents import DeepLatents
from sid_ray.denoisers.flow_noise import FLOW_NOISE
from sid_ray.denoisers.stock import stock_arguments
from sid_ray.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from sid_ray.denoisers.prompt_encoders import PromptEncoders
    from sid_ray.denoisers.prompt_layout import PromptLayout
    from sid_ray.denoisers.stock import StockPipeline

GUIDANCE = 4.5  # of diffusers' pipeline
BINNED = (16, 32, 64, 128)  # latent sizes for which the pipeline has a table of pictures' sizes


class SANA(FlowFamily):
    name = "sana"
    noise = FLOW_NOISE
    teacher_steps = 20
    tokens = 300
    text_parts = ("text_encoder", "tokenizer")
    text_classes: ClassVar = {"text_encoder": ("Gemma2Model", "Gemma2ForCausalLM")}
    adapter_targets = (*ATTENTION, "ff.conv_inverted", "ff.conv_point")
    latents = DeepLatents()
    parts = ("vae", *text_parts, "scheduler")
    official_classes = ("SanaTransformer2DModel",)

    def build(self, network: Arguments) -> nn.Module:
        from sid_ray.denoisers.sana import build_sana

        return build_sana(network, self.layout(network))

    def shape(self, network: Arguments) -> tuple[int, int, int]:
        size = network.get("latent_size", network.get("sample_size", 32))
        return network.get("in_channels", 32), size, size

    def teacher_guidance(self, network: Arguments) -> float:
        """Small networks of pixels have none that is usual."""
        return GUIDANCE if self.makes_latents(network) else 1.0

    def written_out(self, network: Arguments) -> dict[str, Any]:
        from sid_ray.denoisers.sana import sana_written_out

        return sana_written_out(network, self.layout(network).tokens)

    def pipeline(self, network: Arguments, text: Path, factor: int) -> StockPipeline:
        """The pipeline's auto-encoder is one that no network of pixels can be given."""
        from sid_ray.denoisers.sana import time_scale_of

        if not self.makes_latents(network):
            raise UserError(
                "this generator makes pixels, and SANA's pipeline in diffusers decodes latents "
                "with an AutoencoderDC: it cannot be exported"
            )
        size, tokens = network.get("sample_size", 32), self.layout(network).tokens
        found = self.stock_pipeline(network, text, "SanaPipeline", size, tokens, self.tokens)
        known = size in BINNED and size == self.shape(network)[1]
        return replace(
            found,
            vae_class="AutoencoderDC",
            network=stock_arguments(found.network, "time_scale")
            | {"timestep_scale": time_scale_of(network) / 1000},
            call=found.call if known else {**found.call, "use_resolution_binning": False},
            settings={},
        )

    def layout(self, network: Arguments) -> PromptLayout:
        from sid_ray.denoisers.prompt_layout import PromptLayout

        return PromptLayout(
            network.get("text_tokens", self.tokens),
            network.get("caption_channels", 2304),
            masked=True,
        )

    def prompts(self) -> PromptEncoders:
        from sid_ray.denoisers.flow_prompts import SANA_PROMPTS

        return SANA_PROMPTS


SPEC = SANA()
