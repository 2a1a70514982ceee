"""A teacher with random weights, and samples of the right shapes: nothing is downloaded."""

from __future__ import annotations

import torch
from torch import nn

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.registry import family_of
from sid_ray.objectives.spec import objective_spec
from sid_ray.types import Batch, Pick
from sid_ray.weights.description import ModelDescription

GAIN = 0.7  # of what a network multiplies by and starts at 0 (EDM2): its body counts


def random_teacher(description: ModelDescription) -> nn.Module:
    """A frozen network of this description; the same numbers in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = family_of(description.family).build(description.network)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim == 0:
                parameter.fill_(GAIN)
    return teacher.eval().requires_grad_(False)


class RandomSamples:
    """A data set of noise: labels, images where the objective reads some, embeddings of text.

    What a run spends on reading files and on its text encoder is not in it.
    """

    def __init__(self, config: DistillConfig, description: ModelDescription):
        family, network = family_of(description.family), description.network
        self.shape = family.shape(network)
        self._labels, self._text = family.label_dim(network), family.text_shape(network)
        self._images = objective_spec(config.objective.name).reads_images

    def batch(self, pick: Pick) -> Batch:
        count = len(pick.uniform)
        random = torch.Generator().manual_seed(pick.images_seen + pick.stream)
        labels = None
        if self._labels:
            labels = torch.eye(self._labels)[(pick.uniform * self._labels).long()]
        images = torch.randn(count, *self.shape, generator=random) * 0.5 if self._images else None
        text = torch.randn(count, *self._text, generator=random) if self._text else None
        return Batch(labels, images, text)
