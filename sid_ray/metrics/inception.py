"""FID's own network: NVIDIA's TorchScript file of Inception v3 (inception-2015-12-05.pt).

TorchScript is a program: torch.jit.load gives it no Python, but it computes whatever the file says.
So a file is run only with the sha256 that its user got from where it was published, and numbers
can be compared only where these are equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_ray.errors import UserError
from sid_ray.storage.cache import file_sha256


class Inception:
    """Inception v3 as the file has it: it resizes to 299 itself and takes pixels 0 to 255."""

    name, space, resizes = "inception", "Inception", True
    dim, classes, shape = 2048, 1008, (3, 299, 299)

    def __init__(self, network: Any, sha256: str, device: torch.device):
        self.network, self.device = network, device
        self.identity = f"{self.name}-{sha256[:12]}"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> features [B, 2048], logits [B, 1008].

        Two passes: the file gives features or probabilities. Without the output's bias, as the
        Inception Score is defined for this network; the log of a softmax has the same softmax.
        """
        here = images.to(self.device).contiguous()
        features = self.network(here, return_features=True)
        probabilities = self.network(here, no_output_bias=True)
        return features, probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def load_inception(path: Path | None, sha256: str, device: torch.device) -> Inception:
    """The network of a TorchScript file with this checksum.

    Raises UserError for a missing file or checksum, a file with another one, or no TorchScript.
    """
    if path is None or len(sha256) != 64:
        raise UserError(
            "the extractor inception needs NVIDIA's inception-2015-12-05.pt and its sha256 (64 "
            "digits), for it is a program that is run: give both"
        )
    if not path.is_file():
        raise UserError(f"{path} is no file: fetch NVIDIA's inception-2015-12-05.pt first")
    if (found := file_sha256(path)) != sha256.lower():
        raise UserError(
            f"{path} has sha256 {found}, expected {sha256}: it is not run; fetch it again, or "
            "correct the checksum"
        )
    try:
        network = torch.jit.load(path, map_location=device).eval()
    except RuntimeError:
        raise UserError(
            f"{path} is no TorchScript file: NVIDIA's inception-2015-12-05.pt is one, its .pkl not"
        ) from None
    return Inception(network, sha256.lower(), device)
