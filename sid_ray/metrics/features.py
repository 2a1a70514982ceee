"""Named feature spaces: a fixed network, its weights and the statistics of its reference images.

A Frechet distance means something only inside one feature space, so each has a name that every
result carries. ``digits-cnn`` ships with the package; a distance in it is not an FID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from sid_ray.errors import UserError
from sid_ray.metrics.frechet import FeatureStatistics, frechet_distance

ASSETS = Path(__file__).parent.parent / "assets"


class DigitsClassifier(nn.Module):
    """A small digit classifier; the 64 activations before its last layer are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4, 64)
        self.classes = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        """[B, 1, 8, 8] in [-1, 1] -> [B, 64]."""
        x = F.relu(self.conv0(images))
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.features(images))


@dataclass(frozen=True)
class FeatureSpace:
    """A named feature extractor with the mean [D] and covariance [D, D] of its reference set."""

    name: str
    network: DigitsClassifier
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @torch.no_grad()
    def statistics(self, images: Tensor, batch: int = 512) -> FeatureStatistics:
        """Feature sums of images [N, C, H, W] in [-1, 1]."""
        parts = [
            FeatureStatistics.of(self.network.features(chunk.float()).double().numpy())
            for chunk in images.split(batch)
        ]
        return sum(parts[1:], start=parts[0])

    def frechet_distance(self, images: Tensor) -> float:
        """Distance of images [N, C, H, W] in [-1, 1] to the reference set."""
        stats = self.statistics(images)
        return frechet_distance(stats.mean, stats.covariance, self.mean, self.covariance)


def load_feature_space(name: str) -> FeatureSpace:
    """A feature space by name. Raises UserError for an unknown one."""
    if name != "digits-cnn":
        raise UserError(f"unknown feature space {name!r}; known: digits-cnn")
    weights = load_file(ASSETS / "digits-cnn" / "features.safetensors")
    mean = weights.pop("reference.mean").numpy()
    covariance = weights.pop("reference.covariance").numpy()
    network = DigitsClassifier().eval()
    network.load_state_dict(weights)
    return FeatureSpace(name, network.requires_grad_(False), mean, covariance)
