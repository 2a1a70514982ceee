"""FLUX.1: diffusers' FluxTransformer2DModel as a denoiser.

Diffusers is imported inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sid_ray.denoisers.component import require_diffusers
from sid_ray.denoisers.flow_options import (
    arguments_written_out,
    built_transformer,
    check_channels,
    check_latent_size,
    check_plain,
    options_of,
)
from sid_ray.denoisers.flow_transformer import FlowDenoiser, run_layer
from sid_ray.denoisers.prompt_layout import Prompt, PromptLayout
from sid_ray.errors import UserError

CLASS = "FluxTransformer2DModel"
PATCH = 2  # latents of a token's side, packed outside the network
PLAIN = {"patch_size": 1}


class FluxDenoiser(FlowDenoiser):
    """FlowDenoiser of tokens and a pooled embedding; latents are packed in 2x2 patches.

    The network is told 1000 t and, where it embeds it, 1000 times ``cond.guidance``, 1 without.
    """

    def hidden(self, x: Tensor, t: Tensor, prompt: Prompt, guidance: Tensor | None) -> Tensor:
        net = self.transformer
        tokens, text = net.x_embedder(packed(x)), net.context_embedder(prompt.tokens)
        told = [1000 * t]
        if net.config.guidance_embeds:
            told.append(1000 * (torch.ones_like(t) if guidance is None else guidance))
        emb = net.time_text_embed(*told, prompt.pooled)
        height, width = x.shape[2:]
        rotary = net.pos_embed(positions(text.shape[1], height, width, x.device))
        for block in (*net.transformer_blocks, *net.single_transformer_blocks):
            text, tokens = run_layer(net, block, tokens, text, emb, rotary)
        return net.norm_out(tokens, emb)

    def velocity(self, tokens: Tensor, height: int, width: int) -> Tensor:
        return unpacked(self.transformer.proj_out(tokens), height, width)

    def choose_attention(self, backend: str) -> None:
        self.transformer.set_attention_backend("native" if backend == "sdpa" else backend)


def packed(x: Tensor) -> Tensor:
    """[B, C, H, W] -> tokens [B, H/2 * W/2, 4 C], channels ordered (channel, row, column)."""
    count, channels, height, width = x.shape
    split = x.reshape(count, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * PATCH * PATCH)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of packed."""
    count = tokens.shape[0]
    split = tokens.reshape(count, height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(count, -1, height, width)


def positions(text_tokens: int, height: int, width: int, device: torch.device) -> Tensor:
    """(0, row, column) of every token, [text tokens + H/2 * W/2, 3]; text's are zero."""
    rows = torch.arange(height // PATCH, device=device, dtype=torch.float32)
    columns = torch.arange(width // PATCH, device=device, dtype=torch.float32)
    grid = torch.zeros(len(rows), len(columns), 3, device=device)
    grid[..., 1], grid[..., 2] = rows[:, None], columns[None]
    return torch.cat([torch.zeros(text_tokens, 3, device=device), grid.reshape(-1, 3)])


def flux_options(network: Mapping[str, Any]) -> dict[str, Any]:
    """Those of diffusers' class. Raises UserError for a network that cannot be built here."""
    require_diffusers()
    from diffusers import FluxTransformer2DModel

    options = options_of(network, CLASS, FluxTransformer2DModel)
    check_plain(options, CLASS, PLAIN)
    check_channels(options, CLASS)
    if options["in_channels"] % PATCH**2:
        raise UserError(
            f"option 'in_channels' = {options['in_channels']} of {CLASS} is not supported; "
            f"expected {PATCH**2} times the latents' channels"
        )
    check_latent_size(network.get("latent_size", PATCH), PATCH)
    axes, width = options["axes_dims_rope"], options["attention_head_dim"]
    if len(axes) != 3 or sum(axes) != width:
        raise UserError(
            f"option 'axes_dims_rope' = {list(axes)} of {CLASS} is not supported; expected three "
            f"numbers that add up to 'attention_head_dim', {width}"
        )
    return options


def build_flux(network: Mapping[str, Any], layout: PromptLayout) -> FluxDenoiser:
    options = flux_options(network)
    from diffusers import FluxTransformer2DModel

    return FluxDenoiser(built_transformer(FluxTransformer2DModel, options, CLASS), layout)


def flux_written_out(
    network: Mapping[str, Any], latent_size: int, text_tokens: int
) -> dict[str, Any]:
    ours = {"latent_size": latent_size, "text_tokens": text_tokens}
    return arguments_written_out(flux_options(network), ours)
