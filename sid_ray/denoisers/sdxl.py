"""SDXL teachers: Stable Diffusion's U-Net that is also told a pooled prompt and picture sizes.

Symbols
    B, T, D   batch, tokens of a prompt (77), width of a token's embedding (2048, of two CLIPs)
    P         width of the pooled prompt (1280)
    E         width of the embedding of one number (256)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.prompt_layout import PromptLayout
from sid_ray.denoisers.stable_diffusion import (
    PLAIN_UNET,
    StableDiffusionDenoiser,
    build_stable_diffusion,
)
from sid_ray.errors import UserError

TOKENS = 77
PIXELS = 8  # along a side of a picture, for each of its latents
SIZES = 6  # numbers: height and width of the original, top and left of the crop, both of the target
REFINER_SIZES = 5  # the refiner's: an aesthetic score in place of the target
OPTIONS = PLAIN_UNET | {"addition_embed_type": "text_time"}


class SDXLDenoiser(StableDiffusionDenoiser):
    """Told the whole prompt as PromptLayout packs it, and that its picture is neither scaled nor
    cut: original and target are the network's own size.
    """

    embeddings = (*StableDiffusionDenoiser.embeddings, "add_embedding")

    def __init__(self, unet: nn.Module, prediction_type: str = "epsilon"):
        super().__init__(unet, prediction_type)
        self.layout = prompt_layout(self.unet.config)

    def conditioned(self, emb: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled prompt and the sizes are embedded together and added to ``emb``."""
        prompt = self.layout.unpack(text)
        assert prompt.pooled is not None
        told = [prompt.pooled.to(emb.dtype), self._sizes(emb)]
        return emb + self.unet.add_embedding(torch.cat(told, dim=1)), prompt.tokens

    def _sizes(self, like: Tensor) -> Tensor:
        """[B, SIZES * E]: each number as sines and cosines.

        Made on the device at each call: a buffer would be state, a table a wait for the host.
        """
        side = float(PIXELS * self.unet.config.sample_size)
        sizes = torch.full((like.shape[0], SIZES), side, device=like.device)
        sizes[:, 2:4] = 0  # nothing is cut off
        return self.unet.add_time_proj(sizes.flatten()).reshape(like.shape[0], -1).to(like.dtype)


def prompt_layout(network: Mapping[str, Any]) -> PromptLayout:
    """How prompts of a network are packed. Raises UserError where its arguments do not say it."""
    names = (
        "projection_class_embeddings_input_dim",
        "addition_time_embed_dim",
        "cross_attention_dim",
    )
    found: list[Any] = [network.get(name) for name in names]
    if not all(isinstance(value, int) and value > 0 for value in found):
        raise UserError(
            f"{', '.join(names)} of the U-Net are {found}; whole numbers are expected, "
            "[2816, 256, 2048] for SDXL"
        )
    told, number, width = found
    if told - REFINER_SIZES * number == width:
        raise UserError(
            "the U-Net is SDXL's refiner, which is told an aesthetic score and finishes what "
            "another network began: give the base model"
        )
    if told <= SIZES * number:
        raise UserError(
            f"the U-Net is told {told} numbers (projection_class_embeddings_input_dim); more than "
            f"{SIZES} times {number} are expected, those of sizes, and a pooled prompt"
        )
    return PromptLayout(TOKENS, width, pooled=told - SIZES * number)


def build_sdxl(network: Mapping[str, Any]) -> nn.Module:
    """A denoiser from a U-Net's config dict plus ``prediction_type`` (``epsilon`` without it).

    Raises UserError for a U-Net that it cannot be, the refiner's and inpainting ones among them.
    """
    prompt_layout(network)
    return build_stable_diffusion(network, SDXLDenoiser, OPTIONS)
