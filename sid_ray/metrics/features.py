"""Named feature spaces: a fixed network, its weights and the statistics of its reference images.

A Frechet distance means something only inside one feature space, so each has a name that every
result carries. ``digits-cnn`` and ``emoji-cnn`` ship with the package; distances in them are not
FIDs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from sid_ray.denoisers.codecs import IdentityCodec
from sid_ray.errors import UserError, nearest
from sid_ray.metrics.frechet import frechet_distance
from sid_ray.metrics.sums import BLOCK, FeatureSums, merged
from sid_ray.weights.description import write_safetensors

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
        """[B, 1, 8, 8] -> logits of the classes [B, 10]."""
        return self.classes(self.features(images))


class EmojiClassifier(nn.Module):
    """A small classifier of emoji categories; the 64 activations before its last layer are the
    features. Leaky, so that none of them is zero for all images.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.hidden = nn.Linear(widths[-1] * 4, 64)
        self.classes = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, 16, 16] in [-1, 1] -> [B, 64]."""
        x = images
        for conv in self.convs:
            x = F.max_pool2d(F.leaky_relu(conv(x), 0.1), 2)
        return F.leaky_relu(self.hidden(x.flatten(1)), 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, 16, 16] -> logits of the categories [B, 10]."""
        return self.classes(self.features(images))


Classifier = DigitsClassifier | EmojiClassifier
SPACES: dict[str, type[Classifier]] = {
    "digits-cnn": DigitsClassifier,
    "emoji-cnn": EmojiClassifier,
}
FILE = "features.safetensors"


@torch.no_grad()
def feature_sums(network: Classifier, images: Tensor) -> FeatureSums:
    """Of images [N, C, H, W] in [-1, 1] as 8 bits show them, all samples in order."""
    shown = IdentityCodec().decode_uint8(images).float() / 127.5 - 1
    return merged(
        FeatureSums.of_block(network.features(chunk).numpy(), block)
        for block, chunk in enumerate(shown.split(BLOCK))
    )


@dataclass(frozen=True)
class FeatureSpace:
    """A named feature extractor with the mean [D] and covariance [D, D] of its reference set."""

    name: str
    network: Classifier
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    def statistics(self, images: Tensor) -> FeatureSums:
        """Feature sums of images [N, C, H, W] in [-1, 1], as 8 bits show them, in order."""
        return feature_sums(self.network, images)

    def frechet_distance(self, images: Tensor) -> float:
        """Distance of images [N, C, H, W] in [-1, 1] to the reference set."""
        stats = self.statistics(images)
        return frechet_distance(stats.mean, stats.covariance, self.mean, self.covariance)

    @torch.no_grad()
    def class_accuracy(self, images: Tensor, classes: Tensor, batch: int = 512) -> float:
        """Share of images [N, C, H, W] that the classifier takes for their class [N]."""
        found = [self.network(chunk.float()).argmax(1) for chunk in images.split(batch)]
        return float((torch.cat(found) == classes).float().mean())


def save_feature_space(folder: Path, name: str, network: Classifier, real: Tensor) -> None:
    """Writes a feature space with the statistics of its reference images [N, C, H, W]."""
    stats = feature_sums(network, real)
    reference = {
        "reference.mean": torch.from_numpy(stats.mean),
        "reference.covariance": torch.from_numpy(stats.covariance),
    }
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"name": name, "reference_images": str(len(real))}
    write_safetensors(folder / FILE, {**network.state_dict(), **reference}, metadata)


def load_feature_space(name: str) -> FeatureSpace:
    """A feature space by name. Raises UserError for an unknown one."""
    if name not in SPACES:
        known = ", ".join(SPACES)
        raise UserError(f"unknown feature space {name!r}; known: {known}.{nearest(name, SPACES)}")
    weights = load_file(ASSETS / name / FILE)
    mean = weights.pop("reference.mean").numpy()
    covariance = weights.pop("reference.covariance").numpy()
    network = SPACES[name]().eval()
    network.load_state_dict(weights)
    return FeatureSpace(name, network.requires_grad_(False), mean, covariance)
