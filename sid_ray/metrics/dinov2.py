"""FD-DINOv2: DINOv2 ViT-L/14 of a folder in Transformers' layout (facebook/dinov2-large).

Images are resized to 224 x 224 by antialiased bicubic interpolation, as EDM2's fast mode does, and
normalised by ImageNet's mean and deviation, as DINOv2 was trained; the features are the class token
behind the last norm (1024 numbers). Position embeddings are brought to that size as DINOv2's own
code does it, with an offset of 0.1, which Transformers leaves out.

Source: Oquab et al., arXiv 2304.07193; Stein et al., arXiv 2306.04675 (as a metric).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_ray.errors import UserError
from sid_ray.metrics.lite0 import resized_images
from sid_ray.metrics.transformers_folder import load_network

SIZE, OFFSET = 224, 0.1
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
WEIGHTS = "model.safetensors"


def resampled_positions(stored: Tensor, grid: int) -> Tensor:
    """Position embeddings [1, 1 + n * n, D] for grid * grid patches: [1, 1 + grid * grid, D]."""
    first, patches = stored[:, :1], stored[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if side == grid:
        return stored
    planes = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = (grid + OFFSET) / side
    found = F.interpolate(planes, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([first, found.flatten(2).transpose(1, 2)], 1)


class DINOv2:
    """The class token of a DINOv2 network; no logits."""

    name, space, resizes = "dinov2", "DINOv2", True
    classes, shape = 0, (3, SIZE, SIZE)

    def __init__(self, network: Any, digest: str, device: torch.device):
        self.identity = f"{self.name}-{digest[:12]}"
        self.dim = network.config.hidden_size
        places = network.embeddings.position_embeddings
        grid = SIZE // network.config.patch_size
        places.data = resampled_positions(places.data, grid)
        self.network = network.eval().requires_grad_(False).to(device)
        self.mean = torch.tensor(MEAN, device=device)[:, None, None]
        self.deviation = torch.tensor(DEVIATION, device=device)[:, None, None]

    def __call__(self, images: Tensor) -> tuple[Tensor, None]:
        """uint8 [B, 3, H, W] -> features [B, D]."""
        pixels = resized_images(images.to(self.mean.device), SIZE, "bicubic") / 255
        seen = self.network(pixel_values=(pixels - self.mean) / self.deviation)
        return seen.last_hidden_state[:, 0], None


def load_dinov2(folder: Path | None, device: torch.device) -> DINOv2:
    """The network of a folder with config.json and model.safetensors.

    Raises UserError where a file or the package is missing, or it is another network.
    """
    if folder is None or not all((folder / name).is_file() for name in ("config.json", WEIGHTS)):
        raise UserError(
            "the extractor dinov2 needs a folder with config.json and model.safetensors of "
            f"facebook/dinov2-large; {folder or 'none given'} is none: fetch it first"
        )
    network, digest = load_network(folder, "dinov2", "Dinov2Model", "the extractor dinov2")
    return DINOv2(network, digest, device)
