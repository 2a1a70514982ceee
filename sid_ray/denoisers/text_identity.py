"""What names text encoders and their tokenizers by their content, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sid_ray.denoisers.component import component_of, tokenizer_folder, tokenizer_part
from sid_ray.storage.cache import files_sha256
from sid_ray.tensor_files.tensors import weight_files

TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
                   "special_tokens_map.json", "added_tokens.json", "spiece.model",
                   "tokenizer.model")  # fmt: skip


def encoders_among(parts: Sequence[str]) -> list[str]:
    """Those of a family's ``text_parts`` that hold weights: each has a tokenizer of its name."""
    return [part for part in parts if tokenizer_part(part) != part]


def weights_sha256(folder: Path) -> str:
    """sha256 of a component's weights: of its file, or of all its files one after the other.

    Raises UserError where there are none, OSError.
    """
    return files_sha256(weight_files(folder)[0])


def encoders_sha256(folder: Path, parts: Sequence[str]) -> str:
    """Of the weights of all encoders among ``parts``, without their tokenizers."""
    return one_of([weights_sha256(component_of(folder, p)) for p in encoders_in(folder, parts)])


def fingerprint_of_encoders(folder: Path, parts: Sequence[str]) -> str:
    """Of all encoders among ``parts`` with their configs and tokenizers; one that a folder lacks
    counts, too.
    """
    return one_of([fingerprint_of_encoder(folder, part) for part in encoders_in(folder, parts)])


def encoders_in(folder: Path, parts: Sequence[str]) -> list[str]:
    """The encoders among ``parts`` that a folder has: the first one, and those beside it."""
    first, *others = encoders_among(parts)
    return [first, *(part for part in others if (folder / part).is_dir())]


def fingerprint_of_encoder(folder: Path, part: str) -> str:
    encoder, tokenizer = component_of(folder, part), tokenizer_folder(folder, part)
    files = [encoder / "config.json", *(tokenizer / name for name in TOKENIZER_FILES)]
    small = files_sha256([file for file in files if file.is_file()])
    return hashlib.sha256(f"{weights_sha256(encoder)} {small}".encode()).hexdigest()


def one_of(digests: Sequence[str]) -> str:
    """One digest: of one, itself."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
