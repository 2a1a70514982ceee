"""Features themselves, block by block: for the metrics that compare samples with samples.

Kernel distance, precision and recall, and the Inception Score need every sample's numbers. Whoever
makes a block hands it over as float32 under the block's index; put together in that order they are
one array, the same for any number of actors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sid_ray.errors import UserError
from sid_ray.metrics.sums import BLOCK, blocks_of, checked_features

Array = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureBlocks:
    """Features (or logits) [N <= 256, D] by the index of their block; ``a + b`` merges."""

    parts: Mapping[int, Array] = field(default_factory=dict)

    @classmethod
    def of_block(cls, features: ArrayLike, block: int) -> FeatureBlocks:
        """From one block [N <= 256, D]. Raises UserError for features that are not finite."""
        return cls({block: checked_features(features, block).astype(np.float32)})

    @classmethod
    def of(cls, features: ArrayLike) -> FeatureBlocks:
        """From all features [N, D] in the order of the samples."""
        x = np.asarray(features)
        return together(cls.of_block(x[part], block) for block, part in blocks_of(len(x)))

    def __add__(self, other: FeatureBlocks) -> FeatureBlocks:
        return together([self, other])

    def array(self) -> Array:
        """All features [N, D] in the order of the samples.

        Raises UserError where a block is missing: its actor has not answered.
        """
        count = len(self.parts)
        missing = [block for block in range(count) if block not in self.parts]
        if missing or not count:
            raise UserError(
                f"block {missing[0] if missing else 0} of the samples is missing among {count}: "
                "merge what every actor made"
            )
        short = [block for block in range(count - 1) if len(self.parts[block]) != BLOCK]
        if short:
            raise UserError(
                f"block {short[0]} has {len(self.parts[short[0]])} samples, expected {BLOCK} "
                "in every block but the last"
            )
        return np.concatenate([self.parts[block] for block in range(count)])


def together(parts: Iterable[FeatureBlocks]) -> FeatureBlocks:
    """All blocks of all parts. Raises UserError for one that two parts have."""
    found: dict[int, Array] = {}
    for part in parts:
        if twice := found.keys() & part.parts.keys():
            raise UserError(
                f"block {min(twice)} of the samples was made twice: give each to one actor"
            )
        found |= part.parts
    return FeatureBlocks(found)
