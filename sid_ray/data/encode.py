"""The networks of preparation: a VAE's encoder for images, a text encoder for prompts.

What a sample becomes depends on the samples it is encoded with only through rounding, and these
are always the same: batches begin where row groups do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sid_ray.data.latent_files import MAX_HALF, to_half
from sid_ray.errors import UserError
from sid_ray.weights.sources import resolve_component
from sid_ray.weights.tensors import weight_files

BATCH = 8  # images an encoder call
CONVENTIONS = ("edm2", "sd")


def component_folder(source: str | Path, *parts: str) -> Path:
    """The folder of a component: SOURCE/part, or SOURCE where it is one itself.

    The first of ``parts``; the others are fetched with it. Raises UserError where there is none.
    """
    folder = resolve_component(str(source), *parts)
    return folder / parts[0] if (folder / parts[0]).is_dir() else folder


def weights_sha256(folder: Path) -> str:
    """sha256 of a component's weights: of its file, or of all its files one after the other."""
    return files_sha256(weight_files(folder)[0])


def text_encoder_sha256(pipeline: Path) -> str:
    """What names the text encoder of a pipeline's folder in a manifest. Raises UserError."""
    return weights_sha256(component_folder(pipeline, "text_encoder"))


def files_sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class VAEPlan:
    """Which VAE, and what it makes of a square image: (C, h, w)."""

    source: str
    convention: str
    sha256: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class TextPlan:
    """Which text encoder, and the shape (T, D) of a prompt's embedding."""

    source: str
    sha256: str
    shape: tuple[int, int]


def plan_vae(source: str, convention: str, resolution: int) -> VAEPlan:
    """Looks at the VAE. Raises UserError where it cannot be loaded, or the resolution does not suit
    it.
    """
    from sid_ray.denoisers.stable_diffusion import check_vae

    folder = component_folder(source, "vae")
    config = check_vae(folder)
    channels, inputs = config.latent_channels, config.in_channels
    factor = 2 ** (len(config.block_out_channels) - 1)
    if inputs != 3:
        raise UserError(f"{source}: the VAE takes {inputs} channels, 3 are expected")
    if resolution % factor:
        raise UserError(
            f"{resolution}x{resolution} images do not suit {source}, which divides sizes by "
            f"{factor}: --resolution {max(factor, resolution // factor * factor)}"
        )
    size = resolution // factor
    return VAEPlan(source, convention, weights_sha256(folder), (channels, size, size))


def plan_text(source: str) -> TextPlan:
    folder = component_folder(source, "text_encoder", "tokenizer")
    tokens, width = open_text(source, "cpu").null().shape
    return TextPlan(source, weights_sha256(folder), (int(tokens), int(width)))


@cache
def open_vae(source: str, convention: str, device: str) -> Any:
    """The codec around a folder's VAE; loaded once a process."""
    from sid_ray.denoisers.codecs import edm2_codec, stable_diffusion_codec
    from sid_ray.denoisers.stable_diffusion import load_vae

    settle(device)
    folder = component_folder(source, "vae")
    make = edm2_codec if convention == "edm2" else stable_diffusion_codec
    return make(load_vae(folder).to(device), BATCH)


@cache
def open_text(source: str, device: str) -> Any:
    from sid_ray.denoisers.stable_diffusion import load_text

    settle(device)
    return load_text(resolve_component(source, "text_encoder", "tokenizer"), device)


def settle(device: str) -> None:
    """The same rounding in every process: results of matrix products depend on the threads."""
    if device == "cpu":
        torch.set_num_threads(1)


def encode_pixels(plan: VAEPlan, pixels: np.ndarray, device: str) -> np.ndarray:
    """Pixels [N, H, W, 3] uint8 -> mean and std [N, 2C, h, w] float16. Raises UserError."""
    codec = open_vae(plan.source, plan.convention, device)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = codec.encode_moments(images).float().cpu().numpy()
    if found.shape[1:] != (2 * plan.shape[0], *plan.shape[1:]):
        raise UserError(
            f"{plan.source}: made {list(found.shape[1:])} of an image, not {plan.shape}"
        )
    return to_half(found)


def encode_prompts(plan: TextPlan, prompts: Sequence[str], device: str) -> np.ndarray:
    """Prompts -> [N, T D] float16. Raises UserError where a number does not fit."""
    found = open_text(plan.source, device).embed(prompts).float().cpu().numpy()
    if not np.isfinite(found).all() or float(np.abs(found).max()) > MAX_HALF:
        raise UserError(f"{plan.source}: an embedding is not finite or beyond float16")
    return found.reshape(len(found), -1).astype(np.float16)
