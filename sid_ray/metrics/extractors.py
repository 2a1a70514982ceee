"""Feature extractors: fixed networks that turn images into numbers that metrics compare.

A metric means something only inside one feature space, so an extractor has a name, which every
result carries, and an identity, which also tells its weights apart. FID is the name of distances
in NVIDIA's Inception alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sid_ray.errors import UserError, nearest
from sid_ray.metrics.dinov2 import load_dinov2
from sid_ray.metrics.features import ASSETS, FILE, SPACES, Classifier, load_feature_space
from sid_ray.metrics.inception import load_inception
from sid_ray.metrics.lite0 import LITE0, load_lite0
from sid_ray.storage.cache import file_sha256


class Extracted(NamedTuple):
    """Of a batch of images: features [B, D] and logits [B, classes], float32 on the CPU."""

    features: Tensor
    logits: Tensor | None


class Extractor(Protocol):
    """A feature space.

    Attributes:
        name: that it is asked for by.
        space: what its results are called after: FD-<space>, KID-<space>.
        identity: name and digest of the weights; the same for the same numbers.
        dim: D. classes: of its logits, 0 where it has none.
        shape: (C, H, W) of the images that it takes; others are refused unless it ``resizes``.
    """

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def resizes(self) -> bool: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features and logits of images uint8 [B, *shape] (any H, W where it resizes)."""
        ...


class Small:
    """One of the package's own classifiers, of images of one size."""

    resizes = False
    dim, classes = 64, 10

    def __init__(self, name: str, device: torch.device):
        self.name = self.space = name
        self.device = device
        self.network: Classifier = load_feature_space(name).network.to(device)
        self.identity = f"{name}-{file_sha256(ASSETS / name / FILE)[:12]}"
        self.shape = {"digits-cnn": (1, 8, 8), "emoji-cnn": (3, 16, 16)}[name]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(images.to(self.device).float() / 127.5 - 1)
        return features, self.network.classes(features)


NAMES = (*SPACES, *LITE0, "inception", "dinov2")


def load_extractor(
    name: str, device: torch.device | str = "cpu", weights: Path | None = None, sha256: str = ""
) -> Extractor:
    """An extractor by name, on a device.

    ``weights`` is for "inception", the TorchScript file, whose checksum ``sha256`` is, and for
    "dinov2", a folder. Raises UserError for an unknown name, and for files or packages that are
    missing or not the expected ones.
    """
    where = torch.device(device)
    if name in SPACES:
        return Small(name, where)
    if name in LITE0:
        return load_lite0(name, where)
    if name == "inception":
        return load_inception(weights, sha256, where)
    if name == "dinov2":
        return load_dinov2(weights, where)
    known = ", ".join(NAMES)
    raise UserError(f"unknown feature extractor {name!r}; known: {known}.{nearest(name, NAMES)}")


def fit_channels(images: Tensor, channels: int) -> Tensor:
    """Grey images [B, 1, H, W] as three equal channels where three are wanted."""
    return images.expand(-1, 3, -1, -1) if (images.shape[1], channels) == (1, 3) else images


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor) -> Extracted:
    """Features and logits of images uint8 [B, C, H, W]; grey ones are taken for RGB if need be.

    Raises UserError for images of another type, or of a size that the extractor does not take.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(
            f"images of type {images.dtype} and shape {list(images.shape)}, expected uint8 "
            "[batch, channels, height, width]: quantise them as they are saved"
        )
    fitting = fit_channels(images, extractor.shape[0])
    compared = slice(0, 1 if extractor.resizes else 3)
    found, expected = tuple(fitting.shape[1:]), extractor.shape
    if found[compared] != expected[compared]:
        raise UserError(
            f"images of shape {list(found)}, but {extractor.name} takes {list(expected)}"
            f"{' (any height and width)' if extractor.resizes else ''}: choose another extractor"
        )
    features, logits = extractor(fitting)
    return Extracted(features.float().cpu(), None if logits is None else logits.float().cpu())
