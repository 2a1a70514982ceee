"""All that pipelines take from a CLIP text encoder: its states, and what it pools and projects.

Symbols
    B, T, D   prompts, tokens of a prompt (77), width of a token's state     P   of the projection
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sid_ray.denoisers.component import class_in, component_of
from sid_ray.denoisers.encoder_parts import (
    CLIP,
    PROJECTED_CLIP,
    EncoderKind,
    LoadedPart,
    check_part,
    load_part,
    to_device,
)
from sid_ray.tensor_files.tensors import json_object


class ClipStates(NamedTuple):
    """Each float32, on the encoder's device.

    ``last`` [B, T, D] the last hidden state after the final norm, ``penultimate`` [B, T, D] the
    last layer's input, not normalised, ``pooled`` [B, D] the last state at the end token,
    ``projected`` [B, P] its projection; None of a CLIP without one.
    """

    last: Tensor
    penultimate: Tensor
    pooled: Tensor
    projected: Tensor | None = None


class ClipWidths(NamedTuple):
    """D, T and P of a CLIP in a folder; P is 0 where there is no projection."""

    width: int
    tokens: int
    projected: int


StatesOf = Callable[[Sequence[str]], ClipStates]


def clip_kind(folder: Path, part: str) -> EncoderKind:
    """With a projection or without, as the part's config says. Raises UserError."""
    path = component_of(folder, part) / "config.json"
    named = class_in(json_object(path)) if path.is_file() else ""
    return PROJECTED_CLIP if named == PROJECTED_CLIP.name else CLIP


def clip_widths(folder: Path, part: str = "text_encoder", projected: bool = False) -> ClipWidths:
    """Whether clip_states will do, but for damaged numbers. Raises UserError.

    ``projected``: it must be a CLIP with a projection.
    """
    kind = PROJECTED_CLIP if projected else clip_kind(folder, part)
    config = check_part(folder, part, kind)
    own = config.projection_dim if kind is PROJECTED_CLIP else 0
    return ClipWidths(config.hidden_size, config.max_position_embeddings, own)


def clip_states(
    folder: Path,
    part: str = "text_encoder",
    device: torch.device | str = "cpu",
    precision: str = "float32",
) -> StatesOf:
    """The CLIP in a part of a pipeline's folder, as a function of prompts. Raises UserError.

    It computes in ``precision``, a dtype's name in torch, without gradients. The encoder lives as
    long as the function.
    """
    return clip_states_of(
        load_part(folder, part, clip_kind(folder, part), device, getattr(torch, precision))
    )


def clip_states_of(part: LoadedPart) -> StatesOf:
    """The same of a CLIP that is loaded."""
    encoder, tokenizer = part
    has_projection = hasattr(encoder, "text_projection")
    clip = encoder.text_model if has_projection else encoder
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

    @torch.no_grad()
    def states(prompts: Sequence[str]) -> ClipStates:
        shape = {"padding": "max_length", "truncation": True, "max_length": length}
        tokens = tokenizer(list(prompts), return_tensors="pt", **shape).input_ids
        found = clip(input_ids=to_device(tokens, encoder.device), output_hidden_states=True)
        pooled = found.pooler_output
        projected = encoder.text_projection(pooled).float() if has_projection else None
        return ClipStates(
            found.last_hidden_state.float(),
            found.hidden_states[-2].float(),
            pooled.float(),
            projected,
        )

    return states
