"""From images to named numbers: what every block of images adds, and the scores of the whole.

parts = [seen_in(extractor, images, block) for each block]      on any number of actors
scores(extractor.space, combined(parts), reference, real)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from sid_ray.errors import UserError
from sid_ray.metrics.blocks import Array, FeatureBlocks, together
from sid_ray.metrics.extractors import Extractor, extract
from sid_ray.metrics.frechet import dead_features, frechet_distance
from sid_ray.metrics.inception_score import SPLITS, inception_score, shuffled_order
from sid_ray.metrics.kid import SUBSET_SIZE, SUBSETS, choose_subsets, kernel_distance
from sid_ray.metrics.names import DEAD, DEVIATION
from sid_ray.metrics.precision_recall import NEIGHBOURS, precision_recall
from sid_ray.metrics.reference import Statistics
from sid_ray.metrics.sums import BLOCK, FeatureSums, merged

BATCH = 32
"""Images in one pass of an extractor. Part of the bits, as kernels may differ with the batch."""


@dataclass(frozen=True)
class Seen:
    """What an extractor saw in some blocks of a set of images.

    ``features`` and ``logits`` are None where only sums were asked for, or there are no logits.
    """

    sums: FeatureSums
    features: FeatureBlocks | None = None
    logits: FeatureBlocks | None = None


def seen_in(extractor: Extractor, images: Tensor, block: int, keep: bool = True) -> Seen:
    """Of the images uint8 [N <= 256, C, H, W] of one block, in the order of the samples.

    ``keep`` keeps features and logits, which all scores but the Frechet distance need: 4 (D +
    classes) bytes an image. Raises UserError for images that do not fit.
    """
    features, logits = looked_at(extractor, images)
    return as_seen(features, logits if keep else None, block, keep)


def looked_at(extractor: Extractor, images: Tensor) -> tuple[Array, Array | None]:
    """Features [N, D] and logits [N, classes], float32, of images uint8 [N, C, H, W] of one block.

    Raises UserError for images that do not fit.
    """
    found = [extract(extractor, part) for part in images.split(BATCH)]
    logits = [each.logits for each in found if each.logits is not None]
    features = torch.cat([each.features for each in found]).numpy()
    return features, torch.cat(logits).numpy() if logits else None


def as_seen(features: Array, logits: Array | None, block: int, keep: bool = True) -> Seen:
    """What was looked at in one block, ready to be combined with other blocks."""
    return Seen(
        FeatureSums.of_block(features, block),
        FeatureBlocks.of_block(features, block) if keep else None,
        None if logits is None else FeatureBlocks.of_block(logits, block),
    )


def seen_in_all(extractor: Extractor, images: Tensor, keep: bool = True) -> Seen:
    """Of all images uint8 [N, C, H, W], block by block in this process."""
    parts = enumerate(images.split(BLOCK))
    return combined(seen_in(extractor, part, block, keep) for block, part in parts)


def combined(parts: Iterable[Seen]) -> Seen:
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
    return Seen(
        sums[0],
        together(features) if len(features) == count else None,
        together(logits) if len(logits) == count else None,
    )


@dataclass(frozen=True)
class Choice:
    """How many parts the scores look at; part of what a number means."""

    subsets: int = SUBSETS
    subset_size: int = SUBSET_SIZE
    splits: int = SPLITS
    neighbours: int = NEIGHBOURS
    seed: int = 0


def name_in(space: str, metric: str) -> str:
    """A score's name: FD-Lite0, KD-Lite0, ...; in FID's own network FID, KID, IS, precision."""
    if space == "Inception":
        return {"FD": "FID", "KD": "KID"}.get(metric, metric)
    return f"{metric}-{space}"


def frechet_score(space: str, made: FeatureSums, reference: Statistics) -> dict[str, float]:
    """The Frechet distance, and how many of the reference's features are dead (beside which the
    distance sees only whether the made images wake them).
    """
    mean, covariance = reference.mean, reference.covariance
    return {
        name_in(space, "FD"): frechet_distance(made.mean, made.covariance, mean, covariance),
        name_in(space, DEAD): dead_features(mean, covariance),
    }


def both_features(made: Seen, real: Seen) -> tuple[NDArray, NDArray]:
    """Raises UserError where features were not kept."""
    if made.features is None or real.features is None:
        raise UserError("kernel distance, precision and recall need the features: keep them")
    return made.features.array(), real.features.array()


def kernel_scores(space: str, made: Seen, real: Seen, choice: Choice) -> dict[str, float]:
    """Kernel distance (KID). Raises UserError where features were not kept, or are too few."""
    x, y = both_features(made, real)
    chosen = choose_subsets(len(x), len(y), choice.subsets, choice.subset_size, choice.seed)
    distance, name = kernel_distance(x, y, chosen), name_in(space, "KD")
    return {name: distance.mean, f"{name}{DEVIATION}": distance.deviation}


def neighbour_scores(space: str, made: Seen, real: Seen, choice: Choice) -> dict[str, float]:
    """Precision and recall. Raises UserError where features were not kept, or are too few."""
    inside = precision_recall(*both_features(made, real), choice.neighbours)
    return {
        name_in(space, "precision"): inside.precision,
        name_in(space, "recall"): inside.recall,
    }


def class_scores(space: str, made: Seen, choice: Choice) -> dict[str, float]:
    """The Inception Score; empty where there are no logits."""
    if made.logits is None:
        return {}
    logits = made.logits.array()
    found = inception_score(logits, shuffled_order(len(logits), choice.seed), choice.splits)
    name = name_in(space, "IS")
    return {name: found.mean, f"{name}{DEVIATION}": found.deviation}


def scores(
    space: str,
    made: Seen,
    reference: Statistics,
    real: Seen | None = None,
    choice: Choice | None = None,
) -> dict[str, float]:
    """Every score that what was kept allows, by name.

    Args:
        space: of the extractor that saw both.
        made: of the generated images.
        reference: statistics of the real images.
        real: of the real images themselves, for kernel distance, precision and recall.

    Raises UserError for too few images.
    """
    how = choice or Choice()
    found = frechet_score(space, made.sums, reference) | class_scores(space, made, how)
    if real is not None:
        found |= kernel_scores(space, made, real, how)
        found |= neighbour_scores(space, made, real, how)
    return found
