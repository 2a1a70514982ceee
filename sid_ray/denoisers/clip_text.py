"""CLIP's text encoder and tokenizer, of a pipeline's folder or alone.

Symbols
    B, T, D   prompts, tokens of a prompt (77), width of a token's embedding (768 or 1024)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_ray.denoisers.component import tokenizer_folder
from sid_ray.denoisers.encoder_parts import CLIP, check_part, load_encoder_of, load_tokenizer_of
from sid_ray.denoisers.text import TextEmbeddings

CACHE_BYTES = 256 * 2**20  # of prompt embeddings: 1,137 prompts of SD 1.5


def check_text_encoder(folder: Path) -> Any:
    """Whether load_text will do, but for damaged numbers; the encoder's config.

    Raises UserError naming what is missing.
    """
    return check_part(folder, "text_encoder", CLIP)


def shape_of_encoder(folder: Path) -> tuple[int, int]:
    """(T, D) of load_text's embeddings; the weights' numbers are not read. Raises UserError."""
    config = check_text_encoder(folder)
    return tokens_read(load_tokenizer(tokenizer_folder(folder)), config), config.hidden_size


def tokens_read(tokenizer: Any, config: Any) -> int:
    """Of a prompt."""
    return min(tokenizer.model_max_length, config.max_position_embeddings)


def load_encoder(folder: Path) -> Any:
    """The text encoder of a pipeline's folder with its weights, float32."""
    return load_encoder_of(folder, "text_encoder", CLIP)


def load_text(
    folder: Path,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    **options: Any,
) -> TextEmbeddings:
    """The text encoder and tokenizer of a pipeline folder; ``options`` are TextEmbeddings'.

    The encoder computes in ``precision``, its name in torch; embeddings are float32 and kept up to
    CACHE_BYTES.
    """
    encoder = load_encoder(folder).to(device, getattr(torch, precision))
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    length = tokens_read(tokenizer, encoder.config)

    def tokenize(prompts: Sequence[str]) -> Tensor:
        """[B, T], padded with the tokenizer's own pad token: 49407 in SD 1.5, 0 in SD 2."""
        shape = {"padding": "max_length", "truncation": True, "max_length": length}
        found: Tensor = tokenizer(list(prompts), return_tensors="pt", **shape).input_ids
        if torch.device(device).type != "cuda":
            return found.to(device)
        return found.pin_memory().to(device, non_blocking=True)  # the host does not wait

    def encode(tokens: Tensor) -> Tensor:
        """The last hidden state, after the final norm; no padding mask, as published."""
        return encoder(input_ids=tokens).last_hidden_state.float()

    size = 4 * length * encoder.config.hidden_size
    return TextEmbeddings(tokenize, encode, **{"max_prompts": CACHE_BYTES // size} | options)


def load_tokenizer(folder: Path) -> Any:
    """The CLIP tokenizer of a folder. Raises UserError naming the file that is missing."""
    return load_tokenizer_of(folder, CLIP)
