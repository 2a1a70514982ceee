"""Data sets by name, as a training step sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.config import DataConfig
from sid_ray.data import digits
from sid_ray.types import Batch


@dataclass(frozen=True)
class LabelSource:
    """A data-free source: class labels by the data set's own histogram, and no pixels.

    ``classes`` [N] holds the data set's labels; a uniform number picks one of its N samples, so
    labels come with the frequencies of the real data.
    """

    shape: Sequence[int]
    label_dim: int
    classes: Tensor

    def labels(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) [B] -> class indices [B]."""
        index = (uniform.double() * len(self.classes)).long().clamp_max(len(self.classes) - 1)
        return self.classes[index]

    def one_hot(self, classes: Tensor) -> Tensor:
        """Class indices [B] -> [B, label_dim]."""
        return torch.nn.functional.one_hot(classes, self.label_dim).float()

    def batch(self, uniform: Tensor) -> Batch:
        return Batch(labels=self.one_hot(self.labels(uniform)))


def open_labels(data: DataConfig) -> LabelSource:
    """The labels of a data set. Its name is one that the config accepts."""
    sources = {"digits": lambda: (digits.SHAPE, digits.LABEL_DIM, digits.load_digits()[1])}
    return LabelSource(*sources[data.name]())
