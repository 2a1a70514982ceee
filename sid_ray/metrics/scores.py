"""What a feature network sees in images, block by block, and in the whole.

parts = [as_seen(*looked_at(extractor, images), block) for each block]      on any number of actors
made = combined(parts)                                          what metrics take their scores from
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.errors import UserError
from sid_ray.metrics.blocks import Array, FeatureBlocks, together
from sid_ray.metrics.extractors import Extractor, extract
from sid_ray.metrics.sums import FeatureSums, merged

BATCH = 32
"""Images in one pass of an extractor. Part of the bits, as kernels may differ with the batch."""


@dataclass(frozen=True)
class SeenBlocks:
    """What an extractor saw in some blocks of a set of images.

    ``features`` and ``logits`` are None where only sums were asked for, or there are no logits.
    Features take 4 D bytes an image.
    """

    sums: FeatureSums
    features: FeatureBlocks | None = None
    logits: FeatureBlocks | None = None


def features_of(extractor: Extractor, images: Tensor) -> tuple[Array, Array | None]:
    """Features [N, D] and logits [N, classes], float32, of images uint8 [N, C, H, W] of one block.

    Raises UserError for images that do not fit.
    """
    found = [extract(extractor, part) for part in images.split(BATCH)]
    logits = [each.logits for each in found if each.logits is not None]
    features = torch.cat([each.features for each in found]).numpy()
    return features, torch.cat(logits).numpy() if logits else None


def both_features(made: SeenBlocks, real: SeenBlocks) -> tuple[Array, Array]:
    """[N, D] and [M, D]. Raises UserError where features were not kept."""
    if made.features is None or real.features is None:
        raise UserError("kernel distance, precision and recall need the features: keep them")
    return made.features.array(), real.features.array()


def as_seen(features: Array, logits: Array | None, block: int, keep: bool = True) -> SeenBlocks:
    """What was looked at in one block, ready to be combined with other blocks."""
    return SeenBlocks(
        FeatureSums.of_block(features, block),
        FeatureBlocks.of_block(features, block) if keep else None,
        None if logits is None else FeatureBlocks.of_block(logits, block),
    )


def combined(parts: Iterable[SeenBlocks]) -> SeenBlocks:
    """All blocks of all parts, the same bits in any order and grouping.

    Raises UserError for a block that two parts have.
    """
    sums: list[FeatureSums] = []  # one at most: each may take 64 MiB
    features, logits, count = [], [], 0
    for each in parts:
        sums = [merged([*sums, each.sums])]
        features += [each.features] if each.features is not None else []
        logits += [each.logits] if each.logits is not None else []
        count += 1
    return SeenBlocks(
        sums[0],
        together(features) if len(features) == count else None,
        together(logits) if len(logits) == count else None,
    )
