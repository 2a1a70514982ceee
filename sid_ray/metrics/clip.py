"""CLIP: embeddings of images and texts, and how well images fit their texts.

    network = load_clip(folder)
    sums = merged(FeatureSums.of_block(network.look(images, texts), block) for each block)
    clip_score(sums)

The CLIP score is the mean cosine of the embeddings of image and text, not multiplied by 100. A
number means something only with its network: SiD-LSG's are of OpenCLIP ViT-G/14. The folder is in
Transformers' layout, with the tokenizer's files in it.

Source: Hessel et al., arXiv 2104.08718, without its factor and its cut at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sid_ray.denoisers.clip_text import load_tokenizer
from sid_ray.errors import UserError
from sid_ray.metrics.extractors import fit_channels
from sid_ray.metrics.sums import FeatureSums
from sid_ray.metrics.transformers_folder import load_network

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCH = 32


class Clip:
    """A CLIP network and its tokenizer, None where only images are looked at, on a device.

    Attributes:
        scale: of cosines in its training, the exponential of a trained number: about 100.
    """

    def __init__(self, network: Any, tokenizer: Any, digest: str, device: torch.device):
        self.network = network.eval().requires_grad_(False).to(device)
        self.tokenizer, self.device = tokenizer, device
        self.size = network.config.vision_config.image_size
        self.tokens = network.config.text_config.max_position_embeddings
        self.scale = float(network.logit_scale.exp())
        self.identity = f"clip-{digest[:12]}"
        self.mean = torch.tensor(MEAN, device=device)[:, None, None]
        self.deviation = torch.tensor(DEVIATION, device=device)[:, None, None]

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> what the network sees: the shorter side resized as Pillow's bicubic
        does, to whole numbers, then the middle, normalised.
        """
        height, width = images.shape[2:]
        short = min(height, width)
        sides = (height * self.size // short, width * self.size // short)
        found = F.interpolate(images.float(), sides, mode="bicubic", antialias=True)
        top, left = ((side - self.size) // 2 for side in sides)
        middle = found[:, :, top : top + self.size, left : left + self.size]
        return (middle.clamp(0, 255).round() / 255 - self.mean) / self.deviation

    def look(self, images: Tensor, texts: Sequence[str] | None) -> NDArray:
        """Cosines of images uint8 [N, 3, H, W] and a text for each: [N, 1]. Raises UserError."""
        return clip_cosines(self, images, texts or [])[:, None].numpy()

    def cosines(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Of each image uint8 [B, 3, H, W] and its text: [B], float32 on the CPU."""
        shape = {"padding": "max_length", "truncation": True, "max_length": self.tokens}
        ids = self.tokenizer(list(texts), return_tensors="pt", **shape).input_ids.to(self.device)
        of_text = self.network.get_text_features(ids).pooler_output
        return F.cosine_similarity(of_text, self.seen(images)).float().cpu()

    def seen(self, images: Tensor) -> Tensor:
        """Embeddings of images uint8 [B, 3, H, W]: [B, D], on the device."""
        found: Tensor = self.network.get_image_features(
            self.pixels(images.to(self.device))
        ).pooler_output
        return found


def load_clip(
    folder: Path,
    device: torch.device | str = "cpu",
    what: str = "the CLIP score",
    reads_text: bool = True,
) -> Clip:
    """The network of a folder, and its tokenizer where it ``reads_text``.

    ``what`` needs it, for messages. Raises UserError where something is missing.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json: {what} needs a CLIP network in Transformers' layout; "
            "fetch one first"
        )
    network, digest = load_network(folder, "clip", "CLIPModel", what)
    tokenizer = load_tokenizer(folder) if reads_text else None
    return Clip(network, tokenizer, digest, torch.device(device))


def checked_images(images: Tensor, what: str) -> Tensor:
    """uint8 [N, 3, H, W]; grey images are taken for RGB. Raises UserError for anything else."""
    fitting = fit_channels(images, 3) if images.ndim == 4 else images
    if images.dtype != torch.uint8 or fitting.ndim != 4 or fitting.shape[1] != 3:
        raise UserError(
            f"images of type {images.dtype} and shape {list(images.shape)}, expected uint8 "
            f"[batch, 3, height, width] for {what}"
        )
    return fitting


@torch.no_grad()
def clip_cosines(
    clip: Clip, images: Tensor, texts: Sequence[str], what: str = "the CLIP score"
) -> Tensor:
    """Of images uint8 [N, 3, H, W], or grey ones, and a text for each: [N].

    Raises UserError for images that are no bytes, or another number of texts.
    """
    images = checked_images(images, what)
    if len(texts) != len(images):
        raise UserError(f"{len(images)} images and {len(texts)} texts: give one text to each image")
    starts = range(0, len(images), BATCH)
    return torch.cat([clip.cosines(images[i : i + BATCH], texts[i : i + BATCH]) for i in starts])


def clip_score(sums: FeatureSums) -> float:
    """The mean cosine, -1 to 1; the same bits for any number of actors."""
    return float(sums.mean[0])
