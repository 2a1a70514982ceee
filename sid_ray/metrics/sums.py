"""Sums of features that merge to the same bits, however the samples were shared out.

Samples are counted in blocks of 256 by their index. A block's sums are made in float64 by whoever
has it, in one fixed order, and then rounded once to fixed point: two int64 numbers, in steps of
2^-12 and of 2^-56. Integers add up to the same value in any order and grouping, so 1, 2 or 5 actors
give one mean and covariance, and the memory is that of one sum (D = 2048: 64 MiB), not of a tree.

What has to stay equal for equal bits is what happens inside a block: the same network, device kind
and libraries, and whole blocks as its batches (kernels may differ with the batch).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sid_ray.errors import UserError

BLOCK = 256
"""Samples in a block; sample i is in block i // BLOCK. Only the last one may have fewer."""

COARSE, FINE = 2.0**12, 2.0**56
# The coarse part of one block is below 2^62 / 2^20 steps, so a million blocks fit in int64.
LIMIT = 2.0**30

Fixed = NDArray[np.int64]  # [2, ...]: coarse steps, fine steps


def to_fixed(values: NDArray[np.float64]) -> Fixed:
    """Float64 numbers below LIMIT as two integers each, [2, ...]; steps of 2^-56."""
    coarse = np.rint(values * COARSE)
    fine = np.rint((values - coarse / COARSE) * FINE)  # the difference is exact
    return np.stack([coarse, fine]).astype(np.int64)


def to_float(fixed: Fixed) -> NDArray[np.float64]:
    """The float64 number of two integers."""
    return fixed[0] / COARSE + fixed[1] / FINE


def blocks_of(count: int) -> Iterable[tuple[int, slice]]:
    """(block, its samples) of ``count`` samples, in order."""
    return ((start // BLOCK, slice(start, start + BLOCK)) for start in range(0, count, BLOCK))


def checked_features(features: ArrayLike, block: int) -> NDArray[np.float64]:
    """Features [N <= BLOCK, D] of a block as float64, or UserError for what cannot be summed."""
    x = np.ascontiguousarray(features, dtype=np.float64)
    if x.ndim != 2 or not 0 < len(x) <= BLOCK:
        raise UserError(
            f"block {block} has features of shape {x.shape}, expected [1 to {BLOCK}, features]: "
            "split the samples by blocks"
        )
    finite = np.isfinite(x).all(1)
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {len(x)} samples of block {block} have features that are "
            "not finite: look at the images that they are of"
        )
    return x


@dataclass(frozen=True)
class FeatureSums:
    """Count, sum and sum of outer products of features; ``a + b`` merges sums of other blocks.

    Attributes:
        blocks: which blocks are in it; none can be counted twice.
        count: samples.
        total: sum of x, fixed point [2, D].
        outer: sum of x x^T, fixed point [2, D, D].
    """

    blocks: frozenset[int]
    count: int
    total: Fixed
    outer: Fixed

    @classmethod
    def of_block(cls, features: ArrayLike, block: int) -> FeatureSums:
        """From the features [N <= 256, D] of one block, in the order of the samples.

        Raises UserError for features that are not finite or too large (sums of 2^30).
        """
        x = checked_features(features, block)
        outer = x.T @ x
        if max(np.abs(x.sum(0)).max(), np.abs(outer).max()) >= LIMIT:
            raise UserError(
                f"features of block {block} reach {np.abs(x).max():.3g}, expected a root mean "
                f"square below {(LIMIT / BLOCK) ** 0.5:.0f}: look at the images that they are of"
            )
        return cls(frozenset({block}), len(x), to_fixed(x.sum(0)), to_fixed(outer))

    @classmethod
    def of(cls, features: ArrayLike) -> FeatureSums:
        """From all features [N, D] in the order of the samples, N > 0."""
        x = np.asarray(features)
        return merged(cls.of_block(x[part], block) for block, part in blocks_of(len(x)))

    def __add__(self, other: FeatureSums) -> FeatureSums:
        if twice := self.blocks & other.blocks:
            raise UserError(
                f"block {min(twice)} of the samples was counted twice: give each to one actor"
            )
        if self.total.shape != other.total.shape:
            widths = f"{self.total.shape[1]} and {other.total.shape[1]}"
            raise UserError(f"features of {widths} numbers cannot be merged: use one extractor")
        return FeatureSums(
            self.blocks | other.blocks,
            self.count + other.count,
            self.total + other.total,
            self.outer + other.outer,
        )

    @property
    def mean(self) -> NDArray[np.float64]:
        """[D]."""
        return to_float(self.total) / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """The unbiased covariance [D, D] (division by N - 1). Raises UserError for one sample."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples, found {self.count}")
        total = to_float(self.total)
        centred = to_float(self.outer) - np.outer(total, total) / self.count
        return (centred + centred.T) / (2 * (self.count - 1))


def merged(parts: Iterable[FeatureSums]) -> FeatureSums:
    """One sum of all parts, whose order and grouping do not matter."""
    return reduce(add, parts)
