"""One text encoder of a pipeline with its tokenizer: a part ``text_encoder`` and ``tokenizer``, or
``text_encoder_2`` and ``tokenizer_2``, and so on. Made by transformers, from files that are checked
before.

    CLIP, PROJECTED_CLIP, T5, GEMMA2      what there is
    check_part(folder, part, CLIP)        its config, or UserError
    load_part(folder, part, CLIP, ...)    the encoder with its weights, and the tokenizer
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sid_ray.denoisers.component import (
    Tensors,
    component_of,
    fitting_tensors,
    laid_out,
    line_of_error,
    read_config,
    require_diffusers,
    tokenizer_folder,
)
from sid_ray.errors import UserError

TEXT_FILES = ("model", "pytorch_model")


def clip_names(found: Mapping[str, Tensor], model: nn.Module) -> Tensors:
    """Tensors of a CLIP's file under the names of today: the hub's begin with text_model, and older
    ones hold the positions' numbers.
    """
    expected, prefix = set(model.state_dict()), "text_model."
    names = {}
    for name, value in found.items():
        if name not in expected:
            name = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
        if not name.endswith("embeddings.position_ids"):
            names[name] = value
    return names


def t5_names(found: Mapping[str, Tensor], model: nn.Module) -> Tensors:
    """The embeddings have two names, of which files hold one or both."""
    names = dict(found)
    for name, twin in (T5_TWINS, T5_TWINS[::-1]):
        if name not in names and twin in names:
            names[name] = names[twin]
    return names


T5_TWINS = ("shared.weight", "encoder.embed_tokens.weight")


def gemma_names(found: Mapping[str, Tensor], model: nn.Module) -> Tensors:
    """Files of the language model hold the encoder inside it, and its output layer."""
    return {
        name.removeprefix("model."): value
        for name, value in found.items()
        if name != "lm_head.weight"
    }


@dataclass(frozen=True)
class EncoderKind:
    """A class of text encoders.

    Attributes:
        name: of the class in transformers, in messages.
        config, tokenizer: of its config and its tokenizer's class there.
        renamed: the tensors of its files under the names of today.
        also: other classes whose files hold it.
        tokenizer_files: of which all of one entry must be there.
    """

    name: str
    config: str
    tokenizer: str
    renamed: Callable[[Mapping[str, Tensor], nn.Module], Tensors]
    also: tuple[str, ...] = ()
    tokenizer_files: tuple[tuple[str, ...], ...] = (("tokenizer.json",),)

    @property
    def names(self) -> tuple[str, ...]:
        """All that a config may name."""
        return (self.name, *self.also)


CLIP_TOKENIZER_FILES = (("vocab.json", "merges.txt"), ("tokenizer.json",))
CLIP = EncoderKind(
    "CLIPTextModel",
    "CLIPTextConfig",
    "CLIPTokenizer",
    clip_names,
    tokenizer_files=CLIP_TOKENIZER_FILES,
)
PROJECTED_CLIP = EncoderKind(
    "CLIPTextModelWithProjection",
    "CLIPTextConfig",
    "CLIPTokenizer",
    clip_names,
    tokenizer_files=CLIP_TOKENIZER_FILES,
)
T5 = EncoderKind("T5EncoderModel", "T5Config", "T5TokenizerFast", t5_names)
GEMMA2 = EncoderKind(
    "Gemma2Model", "Gemma2Config", "GemmaTokenizerFast", gemma_names, ("Gemma2ForCausalLM",)
)


class LoadedPart(NamedTuple):
    """A text encoder, and its tokenizer."""

    encoder: Any
    tokenizer: Any


def lay_out_part(folder: Path, part: str, kind: EncoderKind) -> Any:
    """The encoder without memory. Raises UserError."""
    require_diffusers()
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for two files of weights
    own = component_of(folder, part)
    config = read_config(own, *kind.names)
    made = getattr(transformers, kind.config)
    return laid_out(lambda: getattr(transformers, kind.name)(made.from_dict(config)), own)


def check_part(folder: Path, part: str, kind: EncoderKind) -> Any:
    """Whether load_part will do, but for damaged numbers; the encoder's config.

    Raises UserError naming what is missing.
    """
    encoder, own = lay_out_part(folder, part, kind), component_of(folder, part)
    fitting_tensors(encoder, own, TEXT_FILES, kind.renamed, numbers=False)
    beside = tokenizer_folder(folder, part)
    tokenizer = load_tokenizer_of(beside, kind)
    if len(tokenizer) > encoder.config.vocab_size:
        raise UserError(
            f"{beside} has {len(tokenizer):,} tokens, the text encoder in {own} "
            f"knows {encoder.config.vocab_size:,}: they are not of one pipeline"
        )
    return encoder.config


def load_part(
    folder: Path,
    part: str,
    kind: EncoderKind,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedPart:
    """The encoder, computing in ``dtype``, and its tokenizer. Raises UserError."""
    encoder = load_encoder_of(folder, part, kind, dtype).to(device)
    return LoadedPart(encoder, load_tokenizer_of(tokenizer_folder(folder, part), kind))


def load_encoder_of(
    folder: Path, part: str, kind: EncoderKind, dtype: torch.dtype = torch.float32
) -> Any:
    """The encoder of lay_out_part with its weights: eval, without gradients. Raises UserError."""
    import transformers

    laid, own = lay_out_part(folder, part, kind), component_of(folder, part)
    tensors = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in fitting_tensors(laid, own, TEXT_FILES, kind.renamed).items()
    }
    # The library fills what no file holds: the positions' numbers.
    encoder = getattr(transformers, kind.name).from_pretrained(
        None, config=laid.config, state_dict=tensors, dtype=dtype
    )
    return encoder.to(dtype).eval().requires_grad_(False)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """What is in the host's memory on a device; the host does not wait."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def load_tokenizer_of(folder: Path, kind: EncoderKind) -> Any:
    """The tokenizer of a folder. Raises UserError naming the file that is missing."""
    import transformers

    lacking = [
        [name for name in names if not (folder / name).is_file()] for names in kind.tokenizer_files
    ]
    if all(lacking):
        raise UserError(f"no tokenizer in {folder}: {lacking[0][0]} is missing")
    try:
        return getattr(transformers, kind.tokenizer).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        what = kind.tokenizer.removesuffix("Fast").removesuffix("Tokenizer")
        raise UserError(
            f"{folder} does not hold a {what} tokenizer: {line_of_error(error)}"
        ) from error
