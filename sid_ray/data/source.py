"""Data sets by name, as a training step sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.config.sections import DataConfig
from sid_ray.data import digits, emoji
from sid_ray.data.manifest import read_manifest
from sid_ray.data.prompts import read_prompts
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_elsewhere
from sid_ray.storage.store import Store
from sid_ray.types import Batch, Pick

Embed = Callable[[Sequence[str]], Tensor]  # prompts -> [B, T, D]

# (C, H, W) and number of classes of data sets that give labels only. CIFAR-10 has as many images
# of each class; ImageNet nearly (732 to 1,300): there labels are drawn evenly over the classes.
LABELS_ONLY = {
    "cifar10": ((3, 32, 32), 10),
    "imagenet-64": ((3, 64, 64), 1000),
    "ffhq-64": ((3, 64, 64), 0),
    "afhqv2-64": ((3, 64, 64), 0),
    "imagenet-512": ((4, 64, 64), 1000),
}


@dataclass(frozen=True)
class DataSource:
    """What a data set has of each of its samples; a uniform number picks one of them.

    Args:
        shape: (C, H, W) of what the denoiser works on.
        label_dim: classes that the denoiser is told; 0 for none.
        classes: [N] class of each sample, or None: then every class is as likely.
        images: [N, C, H, W], or None where only labels or prompts are at hand.
        prompts: [N] texts, or None.
        embed: prompts to their embeddings; needed where there are prompts.
    """

    shape: Sequence[int]
    label_dim: int = 0
    classes: Tensor | None = None
    images: Tensor | None = None
    prompts: Sequence[str] | None = None
    embed: Embed | None = None

    def __len__(self) -> int:
        for column in (self.classes, self.prompts):
            if column is not None:
                return len(column)
        return max(self.label_dim, 1)

    @property
    def has_images(self) -> bool:
        return self.images is not None

    @property
    def has_prompts(self) -> bool:
        return self.prompts is not None

    @property
    def reads(self) -> bool:
        """Whether ``batch`` may have to wait for files."""
        return False

    def wait(self, images_seen: int, timeout_s: float | None = None) -> bool:
        """Whether all that this rank needs for an iteration is there."""
        return True

    def close(self) -> None:
        """Ends what reads files in the background."""

    def index(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) [B] -> samples [B] int64."""
        return (uniform.double() * len(self)).long().clamp_max(len(self) - 1)

    def labels(self, index: Tensor) -> Tensor:
        """Samples [B] -> class indices [B]."""
        return index if self.classes is None else self.classes[index]

    @property
    def class_names(self) -> Sequence[str]:
        """What the classes are called; empty where nobody says."""
        return ()

    def one_hot(self, classes: Tensor) -> Tensor | None:
        """Class indices [B] -> [B, label_dim]; None without classes."""
        if not self.label_dim:
            return None
        return torch.nn.functional.one_hot(classes, self.label_dim).float()

    def text(self, index: Tensor) -> Tensor | None:
        """Samples [B] -> their prompts' embeddings [B, T, D]; None without prompts."""
        if self.prompts is None or self.embed is None:
            return None
        return self.embed([self.prompts[i] for i in index.tolist()])

    def captions(self, index: Tensor) -> list[str] | None:
        """Samples [B] -> their prompts as texts; None without prompts."""
        return None if self.prompts is None else [self.prompts[i] for i in index.tolist()]

    def pictures(self, tell: Callable[[str], None] = lambda text: None) -> Iterator[Tensor]:
        """All images from first to last, uint8 [N, C, H, W] in parts.

        ``tell`` hears of storage that does not answer. Raises UserError, StoreError.
        """
        assert self.images is not None
        yield (self.images * 127.5 + 128).clip(0, 255).to(torch.uint8)

    @property
    def fingerprint(self) -> str:
        """The same for the same images."""
        assert self.images is not None
        return hashlib.sha256(self.images.contiguous().numpy().tobytes()).hexdigest()

    def batch(self, pick: Pick) -> Batch:
        """Samples by independent draws: all are in memory."""
        index = self.index(pick.uniform)
        images = None if self.images is None else self.images[index]
        return Batch(self.one_hot(self.labels(index)), images, self.text(index))


def is_prepared(data: DataConfig) -> bool:
    """Whether the config's set is one that sid-ray data prepare has made."""
    if data.name == "prompts":
        return is_elsewhere(data.source) or (bool(data.source) and expanded(data.source).is_dir())
    return data.name == "prepared" or (data.name in LABELS_ONLY and bool(data.source))


def data_fingerprint(data: DataConfig) -> str:
    """The same for the same samples, wherever they lie; empty for sets that ship.

    Raises UserError, StoreError.
    """
    if is_prepared(data):
        return read_manifest(Store.at(data.source)).fingerprint
    if data.name == "prompts" and data.source:
        return file_sha256(expanded(data.source))
    return ""


def open_source(data: DataConfig, shape: Sequence[int], embed: Embed | None = None) -> DataSource:
    """A data set by its name, but for prepared ones.

    ``shape`` is the teacher's, for data sets of prompts alone; ``embed`` its text encoder. Raises
    UserError when a file is missing or empty.
    """
    if data.name == "digits":
        images, classes = digits.load_digits()
        return DataSource(digits.SHAPE, digits.LABEL_DIM, classes, images)
    if data.name == "emoji":
        found = emoji.load_emoji()
        return DataSource(
            emoji.SHAPE,
            classes=found.categories,
            images=found.images,
            prompts=found.captions,
            embed=embed,
        )
    if data.name == "prompts":
        return DataSource(shape, prompts=read_prompts(data.source), embed=embed)
    size, label_dim = LABELS_ONLY[data.name]
    return DataSource(size, label_dim)
