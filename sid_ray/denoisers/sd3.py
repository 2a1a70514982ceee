"""Stable Diffusion 3 and 3.5: diffusers' SD3Transformer2DModel as a denoiser.

Diffusers is imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sid_ray.denoisers.component import require_diffusers
from sid_ray.denoisers.flow_options import (
    arguments_written_out,
    built_transformer,
    check_channels,
    check_latent_size,
    options_of,
)
from sid_ray.denoisers.flow_transformer import FlowDenoiser, image_of_patches, run_layer
from sid_ray.denoisers.prompt_layout import Prompt, PromptLayout
from sid_ray.errors import UserError

CLASS = "SD3Transformer2DModel"


class SD3Denoiser(FlowDenoiser):
    """FlowDenoiser of tokens and a pooled embedding; the network is told 1000 t."""

    def hidden(self, x: Tensor, t: Tensor, prompt: Prompt, guidance: Tensor | None) -> Tensor:
        net = self.transformer
        tokens = net.pos_embed(x).contiguous()
        emb = net.time_text_embed(1000 * t, prompt.pooled)
        text = net.context_embedder(prompt.tokens)
        for block in net.transformer_blocks:
            text, tokens = run_layer(net, block, tokens, text, emb)
        return net.norm_out(tokens, emb)

    def velocity(self, tokens: Tensor, height: int, width: int) -> Tensor:
        patches = self.transformer.proj_out(tokens)
        return image_of_patches(patches, height, width, self.transformer.config.patch_size)

    def choose_attention(self, backend: str) -> None:
        from diffusers.models.attention_processor import JointAttnProcessor2_0

        if backend == "sdpa":
            self.transformer.set_attn_processor(JointAttnProcessor2_0())
        else:
            self.transformer.enable_xformers_memory_efficient_attention()


def sd3_options(network: Mapping[str, Any]) -> dict[str, Any]:
    """Those of diffusers' class. Raises UserError for a network that cannot be built here."""
    require_diffusers()
    from diffusers import SD3Transformer2DModel

    options = options_of(network, CLASS, SD3Transformer2DModel)
    check_channels(options, CLASS)
    size, patch = network.get("latent_size", options["sample_size"]), options["patch_size"]
    check_latent_size(size, patch, options["pos_embed_max_size"])
    width = options["num_attention_heads"] * options["attention_head_dim"]
    if options["caption_projection_dim"] != width:
        raise UserError(
            f"option 'caption_projection_dim' = {options['caption_projection_dim']} of {CLASS} "
            f"must be the width of its heads together, {width}"
        )
    return options


def build_sd3(network: Mapping[str, Any], layout: PromptLayout) -> SD3Denoiser:
    options = sd3_options(network)
    from diffusers import SD3Transformer2DModel

    return SD3Denoiser(built_transformer(SD3Transformer2DModel, options, CLASS), layout)


def sd3_written_out(network: Mapping[str, Any], text_tokens: int) -> dict[str, Any]:
    options = sd3_options(network)
    size = network.get("latent_size", options["sample_size"])
    return arguments_written_out(options, {"latent_size": size, "text_tokens": text_tokens})
