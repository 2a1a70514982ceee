"""Stable Diffusion 3 and 3.5 (medium, large): a transformer that reads two CLIPs and T5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sid_ray.denoisers.family import JOINT_BLOCKS, Arguments
from sid_ray.denoisers.flow_family import FlowFamily
from sid_ray.denoisers.flow_latents import ShiftedLatents
from sid_ray.denoisers.flow_noise import FLOW_NOISE

if TYPE_CHECKING:
    from torch import nn

    from sid_ray.denoisers.prompt_encoders import PromptEncoders
    from sid_ray.denoisers.prompt_layout import PromptLayout
    from sid_ray.denoisers.stock import StockPipeline

GUIDANCE = 7.0  # of diffusers' pipeline
USUAL_T5_TOKENS = 256  # there, where nobody says it


class SD3(FlowFamily):
    name = "sd3"
    noise = FLOW_NOISE
    teacher_steps = 28
    tokens = 154  # 77 of the CLIPs, 77 of T5
    text_parts = (
        "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2",
        "tokenizer_3",
    )  # fmt: skip
    text_classes: ClassVar = {
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
    }
    adapter_targets = JOINT_BLOCKS
    latents = ShiftedLatents()
    parts = ("vae", *text_parts, "scheduler")
    official_classes = ("SD3Transformer2DModel",)

    def build(self, network: Arguments) -> nn.Module:
        from sid_ray.denoisers.sd3 import build_sd3

        return build_sd3(network, self.layout(network))

    def shape(self, network: Arguments) -> tuple[int, int, int]:
        size = network.get("latent_size", network.get("sample_size", 128))
        return network.get("in_channels", 16), size, size

    def teacher_guidance(self, network: Arguments) -> float:
        """Small networks of pixels have none that is usual."""
        return GUIDANCE if self.makes_latents(network) else 1.0

    def written_out(self, network: Arguments) -> dict[str, Any]:
        from sid_ray.denoisers.sd3 import sd3_written_out

        return sd3_written_out(network, self.layout(network).tokens)

    def pipeline(self, network: Arguments, text: Path, factor: int) -> StockPipeline:
        from sid_ray.denoisers.flow_prompts import clip_tokens

        tokens = self.layout(network).tokens - clip_tokens(text)
        size = network.get("sample_size", 128)
        name = "StableDiffusion3Pipeline"
        return self.stock_pipeline(network, text, name, size, tokens, USUAL_T5_TOKENS)

    def layout(self, network: Arguments) -> PromptLayout:
        from sid_ray.denoisers.prompt_layout import PromptLayout

        return PromptLayout(
            network.get("text_tokens", self.tokens),
            network.get("joint_attention_dim", 4096),
            pooled=network.get("pooled_projection_dim", 2048),
        )

    def prompts(self) -> PromptEncoders:
        from sid_ray.denoisers.flow_prompts import SD3_PROMPTS

        return SD3_PROMPTS


SPEC = SD3()
