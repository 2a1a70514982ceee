"""The networks of preparation: a VAE's encoder for images, a text encoder for prompts.

What a sample becomes depends on the samples it is encoded with only through rounding, and these
are always the same: batches begin where row groups do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sid_ray.data.latent_files import MAX_HALF, to_half
from sid_ray.denoisers.registry import convention_of
from sid_ray.denoisers.text_identity import weights_sha256
from sid_ray.device.numerics import set_numerics
from sid_ray.errors import UserError
from sid_ray.weights.components import component_folder, open_text, open_vae, text_at


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
    folder = component_folder(source, "vae")
    config = convention_of(convention).check(folder)
    channels, inputs = config.latent_channels, config.in_channels
    factor = convention_of(convention).factor(config)
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
    """Looks at the text encoders. Raises UserError where they cannot be loaded."""
    folder, family, sha256 = text_at(source)
    return TextPlan(source, sha256, family.text_shape_of_folder(folder))


def encode_pixels(plan: VAEPlan, pixels: np.ndarray, device: str) -> np.ndarray:
    """Pixels [N, H, W, 3] uint8 -> mean and std [N, 2C, h, w] float16. Raises UserError."""
    set_numerics()
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
    set_numerics()
    found = open_text(plan.source, device).embed(prompts).float().cpu().numpy()
    if not np.isfinite(found).all() or float(np.abs(found).max()) > MAX_HALF:
        raise UserError(f"{plan.source}: an embedding is not finite or beyond float16")
    return found.reshape(len(found), -1).astype(np.float16)
