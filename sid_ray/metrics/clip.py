"""CLIP score: how well images fit their texts, the mean cosine of CLIP's embeddings of both.

    network = load_clip(folder)
    sums = merged(FeatureSums.of_block(network.look(images, texts), block) for each block)
    clip_score(sums)

Not multiplied by 100. A number means something only with its network: SiD-LSG's are of OpenCLIP
ViT-G/14. The folder is in Transformers' layout, with the tokenizer's files in it.

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
from sid_ray.metrics.sums import FeatureSums
from sid_ray.metrics.transformers_folder import load_network
from sid_ray.storage.cache import file_sha256

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WEIGHTS = "model.safetensors"
BATCH = 32


class Clip:
    """A CLIP network and its tokenizer, on a device."""

    def __init__(self, network: Any, tokenizer: Any, digest: str, device: torch.device):
        self.network = network.eval().requires_grad_(False).to(device)
        self.tokenizer, self.device = tokenizer, device
        self.size = network.config.vision_config.image_size
        self.tokens = network.config.text_config.max_position_embeddings
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
        seen = self.network.get_image_features(self.pixels(images.to(self.device))).pooler_output
        return F.cosine_similarity(of_text, seen).float().cpu()


def load_clip(folder: Path, device: torch.device | str = "cpu") -> Clip:
    """The network and tokenizer of a folder. Raises UserError where something is missing."""
    if not all((folder / name).is_file() for name in ("config.json", WEIGHTS)):
        raise UserError(
            f"{folder} has no config.json and model.safetensors: the CLIP score needs a CLIP "
            "network in Transformers' layout; fetch one first"
        )
    network = load_network(folder, "clip", "CLIPModel", "the CLIP score")
    digest = file_sha256(folder / WEIGHTS)
    return Clip(network, load_tokenizer(folder), digest, torch.device(device))


@torch.no_grad()
def clip_cosines(clip: Clip, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Of images uint8 [N, 3, H, W] and a text for each: [N].

    Raises UserError for images that are not RGB bytes, or another number of texts.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"images of type {images.dtype} and shape {list(images.shape)}, expected uint8 "
            "[batch, 3, height, width] for the CLIP score"
        )
    if len(texts) != len(images):
        raise UserError(f"{len(images)} images and {len(texts)} texts: give one text to each image")
    starts = range(0, len(images), BATCH)
    return torch.cat([clip.cosines(images[i : i + BATCH], texts[i : i + BATCH]) for i in starts])


def clip_score(sums: FeatureSums) -> float:
    """The mean cosine, -1 to 1; the same bits for any number of actors."""
    return float(sums.mean[0])
