"""CLIP's text encoder and tokenizer, of a pipeline's folder or alone.

Symbols
    B, T, D   prompts, tokens of a prompt (77), width of a token's embedding (768 or 1024)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.component import (
    as_float32,
    component_of,
    fitting_tensors,
    laid_out,
    line_of_error,
    read_config,
    require_diffusers,
    tokenizer_folder,
)
from sid_ray.denoisers.text import TextEmbeddings
from sid_ray.errors import UserError

TEXT_FILES = ("model", "pytorch_model")
CACHE_BYTES = 256 * 2**20  # of prompt embeddings: 1,137 prompts of SD 1.5


def lay_out_text(folder: Path) -> nn.Module:
    """The CLIP text encoder of a pipeline folder, without memory. Raises UserError."""
    require_diffusers()
    from transformers import CLIPTextConfig, CLIPTextModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for two files of weights
    own = component_of(folder, "text_encoder")
    config = read_config(own, "CLIPTextModel")
    return laid_out(lambda: CLIPTextModel(CLIPTextConfig.from_dict(config)), own)


def text_names(found: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a text encoder's file under the names of today: the hub's begin with text_model,
    and older ones hold the positions' numbers.
    """
    expected, prefix = set(model.state_dict()), "text_model."
    names = {}
    for name, value in found.items():
        if name not in expected:
            name = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
        if not name.endswith("embeddings.position_ids"):
            names[name] = value
    return names


def check_text_encoder(folder: Path) -> Any:
    """Whether load_text will do, but for damaged numbers; the encoder's config.

    Raises UserError naming what is missing.
    """
    encoder: Any = lay_out_text(folder)
    own = component_of(folder, "text_encoder")
    fitting_tensors(encoder, own, TEXT_FILES, text_names, numbers=False)
    tokenizer = load_tokenizer(tokenizer_folder(folder))
    if len(tokenizer) > encoder.config.vocab_size:
        raise UserError(
            f"{tokenizer_folder(folder)} has {len(tokenizer):,} tokens, the text encoder in {own} "
            f"knows {encoder.config.vocab_size:,}: they are not of one pipeline"
        )
    return encoder.config


def load_encoder(folder: Path) -> Any:
    """The text encoder of lay_out_text with its weights."""
    from transformers import CLIPTextModel

    laid, own = lay_out_text(folder), component_of(folder, "text_encoder")
    tensors = {
        n: as_float32(v) for n, v in fitting_tensors(laid, own, TEXT_FILES, text_names).items()
    }
    # The library fills what no file holds: the positions' numbers.
    encoder = CLIPTextModel.from_pretrained(None, config=laid.config, state_dict=tensors)
    return encoder.float().eval().requires_grad_(False)


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
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)

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
    from transformers import CLIPTokenizer

    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise UserError(f"no tokenizer in {folder}: {name} is missing")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{folder} does not hold a CLIP tokenizer: {line_of_error(error)}"
        ) from error
