"""SDXL's prompts: the states of two CLIPs side by side, and what the second one pools.

Symbols
    B, T   prompts, tokens of a prompt (77)     D   width of a token's embedding (768 + 1280)
    P      width of the pooled prompt (1280)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sid_ray.denoisers.clip_states import clip_states, clip_widths
from sid_ray.denoisers.clip_text import CACHE_BYTES
from sid_ray.denoisers.prompt_layout import Prompt, PromptLayout
from sid_ray.denoisers.text import TextEmbeddings
from sid_ray.errors import UserError
from sid_ray.tensor_files.tensors import json_object

FIRST, SECOND = "text_encoder", "text_encoder_2"
INDEX = "model_index.json"


def layout_of_encoders(folder: Path) -> PromptLayout:
    """Of load_two_encoders' prompts, where it will do but for damaged numbers. Raises UserError."""
    first, second = clip_widths(folder, FIRST), clip_widths(folder, SECOND, projected=True)
    if first.tokens != second.tokens:
        raise UserError(
            f"the text encoders in {folder} read {first.tokens} and {second.tokens} tokens: they "
            "are not of one pipeline"
        )
    return PromptLayout(first.tokens, first.width + second.width, pooled=second.projected)


def zeros_for_nothing(folder: Path) -> bool:
    """Whether a pipeline's empty prompt is zeros (SDXL's base model), not what its encoders make
    of it; so it is where nothing says otherwise, as in diffusers.
    """
    path = folder / INDEX
    said = json_object(path) if path.is_file() else {}
    return bool(said.get("force_zeros_for_empty_prompt", True))


def load_two_encoders(
    folder: Path, device: torch.device | str = "cpu", precision: str = "float32"
) -> TextEmbeddings:
    """The text encoders of a pipeline's folder, as the network's layout packs what they return.

    They compute in ``precision``; embeddings are float32 and kept up to CACHE_BYTES. Raises
    UserError.
    """
    layout, zeros = layout_of_encoders(folder), zeros_for_nothing(folder)
    first, second = (clip_states(folder, part, device, precision) for part in (FIRST, SECOND))

    def encode(prompts: Sequence[str]) -> Tensor:
        """[B, *layout.shape]; the last layers' inputs, without their final norm, as published."""
        one, two = first(prompts), second(prompts)
        tokens = torch.cat([one.penultimate, two.penultimate], dim=2)
        packed = layout.pack(Prompt(tokens, two.projected))
        for row, prompt in enumerate(prompts):
            if zeros and not prompt:
                packed[row] = 0
        return packed

    rows, columns = layout.shape
    kept = CACHE_BYTES // (4 * rows * columns)
    return TextEmbeddings(list, encode, max_prompts=kept)
