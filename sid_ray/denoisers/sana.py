"""SANA: diffusers' SanaTransformer2DModel as a denoiser.

Diffusers is imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sid_ray.denoisers.component import require_diffusers
from sid_ray.denoisers.flow_options import (
    arguments_written_out,
    built_transformer,
    check_channels,
    check_latent_size,
    check_plain,
    options_of,
)
from sid_ray.denoisers.flow_transformer import FlowDenoiser, image_of_patches
from sid_ray.denoisers.prompt_layout import Prompt, PromptLayout
from sid_ray.errors import UserError

CLASS = "SanaTransformer2DModel"
# Dropout would break keyed randomness. Networks told the guidance scale are few-step models.
PLAIN: dict[str, Any] = {"dropout": 0.0, "guidance_embeds": False}
OURS = ("time_scale",)


class SanaDenoiser(FlowDenoiser):
    """FlowDenoiser of tokens and their mask; the network is told ``time_scale`` t: 1000 t, or t for
    Sprint's teachers.
    """

    def __init__(self, transformer: nn.Module, layout: PromptLayout, time_scale: float = 1000.0):
        super().__init__(transformer, layout)
        self.time_scale = time_scale

    def hidden(self, x: Tensor, t: Tensor, prompt: Prompt, guidance: Tensor | None) -> Tensor:
        return self.transformer(x, self.time_scale * t, prompt.tokens, prompt.mask)

    def velocity(self, tokens: Tensor, height: int, width: int) -> Tensor:
        patches = self.transformer.proj_out(tokens)
        return image_of_patches(patches, height, width, self.transformer.config.patch_size)

    def choose_attention(self, backend: str) -> None:
        if backend != "sdpa":
            raise UserError(
                f"attention {backend!r} has no kernel for SANA's linear attention: set "
                "--resources.attention sdpa"
            )


def sana_options(network: Mapping[str, Any]) -> dict[str, Any]:
    """Those of diffusers' class. Raises UserError for a network that cannot be built here."""
    require_diffusers()
    from diffusers import SanaTransformer2DModel

    options = options_of(network, CLASS, SanaTransformer2DModel, OURS)
    check_plain(options, CLASS, PLAIN)
    check_channels(options, CLASS)
    check_latent_size(network.get("latent_size", options["sample_size"]), options["patch_size"])
    width = options["num_attention_heads"] * options["attention_head_dim"]
    if options["cross_attention_dim"] != width:
        raise UserError(
            f"option 'cross_attention_dim' = {options['cross_attention_dim']} of {CLASS} must be "
            f"the width of its heads together, {width}"
        )
    scale = time_scale_of(network)
    if not isinstance(scale, int | float) or not 0 < scale <= 1000:
        raise UserError(f"option 'time_scale' = {scale!r} is not supported; expected 1000 or 1")
    return options


def time_scale_of(network: Mapping[str, Any]) -> Any:
    """What the time is multiplied with: ``time_scale``, else what diffusers' config implies, which
    is told timesteps of 1000.
    """
    return network.get("time_scale", 1000 * network.get("timestep_scale", 1.0))


def build_sana(network: Mapping[str, Any], layout: PromptLayout) -> SanaDenoiser:
    options = sana_options(network)
    from sid_ray.denoisers.sana_body import LinearAttention, SanaBody

    body: Any = built_transformer(SanaBody, options, CLASS)
    for block in body.transformer_blocks:
        block.attn1.set_processor(LinearAttention())
    return SanaDenoiser(body, layout, time_scale_of(network))


def sana_written_out(network: Mapping[str, Any], text_tokens: int) -> dict[str, Any]:
    options = sana_options(network)
    del options["timestep_scale"]  # said by time_scale
    ours = {
        "latent_size": network.get("latent_size", options["sample_size"]),
        "text_tokens": text_tokens,
        "time_scale": float(time_scale_of(network)),
    }
    return arguments_written_out(options, ours)
