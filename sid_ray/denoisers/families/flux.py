"""FLUX.1 (dev, schnell): a transformer that is told the guidance scale and reads T5 and CLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sid_ray.denoisers.family import JOINT_BLOCKS, Arguments
from sid_ray.denoisers.flow_family import FlowFamily
from sid_ray.denoisers.flow_latents import ShiftedLatents
from sid_ray.denoisers.flow_noise import GUIDED_FLOW_NOISE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sid_ray.denoisers.family import LoraNames
    from sid_ray.denoisers.prompt_encoders import PromptEncoders
    from sid_ray.denoisers.prompt_layout import PromptLayout
    from sid_ray.denoisers.stock import StockPipeline

LATENT_SIZE = 64  # of 512 pixels a side; the network's config says none
GUIDANCE = 3.5  # of diffusers' pipeline
PIPELINE_SIZE = 128  # latents of the pipeline, where nobody asks for a size


class FLUX(FlowFamily):
    name = "flux"
    noise = GUIDED_FLOW_NOISE
    teacher_steps = 28
    tokens = 512
    text_parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    text_classes: ClassVar = {
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
    }
    adapter_targets = (*JOINT_BLOCKS, "proj_mlp", "single_transformer_blocks.*.proj_out")
    latents = ShiftedLatents()
    parts = ("vae", *text_parts, "scheduler")
    official_classes = ("FluxTransformer2DModel",)

    def build(self, network: Arguments) -> nn.Module:
        from sid_ray.denoisers.flux import build_flux

        return build_flux(network, self.layout(network))

    def shape(self, network: Arguments) -> tuple[int, int, int]:
        """Unpacked: the network sees four latents as one token."""
        size = network.get("latent_size", LATENT_SIZE)
        return network.get("in_channels", 64) // 4, size, size

    def teacher_guidance(self, network: Arguments) -> float:
        """Only dev is told one."""
        return GUIDANCE if network.get("guidance_embeds") else 1.0

    def written_out(self, network: Arguments) -> dict[str, Any]:
        from sid_ray.denoisers.flux import flux_written_out

        return flux_written_out(network, self.shape(network)[1], self.layout(network).tokens)

    def lora_names(self, tensors: dict[str, Tensor], network: Arguments) -> LoraNames:
        from sid_ray.denoisers.lora import kohya_flux_names

        return kohya_flux_names(tensors)

    def pipeline(self, network: Arguments, text: Path, factor: int) -> StockPipeline:
        """A generator is told a guidance scale of 1, as in its training."""
        tokens = self.layout(network).tokens
        found = self.stock_pipeline(
            network, text, "FluxPipeline", PIPELINE_SIZE, tokens, self.tokens
        )
        told = {**found.call, "guidance_scale": 1.0}
        return replace(found, call=told, packs_latents=True)

    def layout(self, network: Arguments) -> PromptLayout:
        from sid_ray.denoisers.prompt_layout import PromptLayout

        return PromptLayout(
            network.get("text_tokens", self.tokens),
            network.get("joint_attention_dim", 4096),
            pooled=network.get("pooled_projection_dim", 768),
        )

    def prompts(self) -> PromptEncoders:
        from sid_ray.denoisers.flow_prompts import FLUX_PROMPTS

        return FLUX_PROMPTS


SPEC = FLUX()
