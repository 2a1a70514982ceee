"""From images to named numbers: what every block of images adds, and the scores of the whole.

parts = [seen_in(extractor, images, block) for each block]      on any number of actors
scores(extractor.space, combined(parts), reference, real)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.errors import UserError
from sid_ray.metrics.blocks import FeatureBlocks, together
from sid_ray.metrics.extractors import Extractor, extract
from sid_ray.metrics.frechet import dead_features, frechet_distance
from sid_ray.metrics.inception_score import SPLITS, inception_score, shuffled_order
from sid_ray.metrics.kid import SUBSET_SIZE, SUBSETS, choose_subsets, kernel_distance
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
    found = [extract(extractor, part) for part in images.split(BATCH)]
    features = torch.cat([each.features for each in found]).numpy()
    sums = FeatureSums.of_block(features, block)
    if not keep:
        return Seen(sums)
    logits = [each.logits for each in found if each.logits is not None]
    return Seen(
        sums,
        FeatureBlocks.of_block(features, block),
        FeatureBlocks.of_block(torch.cat(logits).numpy(), block) if logits else None,
    )


def seen_in_all(extractor: Extractor, images: Tensor, keep: bool = True) -> Seen:
    """Of all images uint8 [N, C, H, W], block by block in this process."""
    parts = enumerate(images.split(BLOCK))
    return combined(seen_in(extractor, part, block, keep) for block, part in parts)


def combined(parts: Iterable[Seen]) -> Seen:
    """All blocks of all parts, the same bits in any order and grouping.

    Raises UserError for a block that two parts have.
    """
    every = list(parts)
    features = [each.features for each in every if each.features is not None]
    logits = [each.logits for each in every if each.logits is not None]
    return Seen(
        merged(each.sums for each in every),
        together(features) if len(features) == len(every) else None,
        together(logits) if len(logits) == len(every) else None,
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
        name_in(space, "dead_features"): dead_features(mean, covariance),
    }


def sample_scores(space: str, made: Seen, real: Seen, choice: Choice) -> dict[str, float]:
    """Kernel distance, precision and recall. Raises UserError where features were not kept."""
    if made.features is None or real.features is None:
        raise UserError("kernel distance, precision and recall need the features: keep them")
    x, y = made.features.array(), real.features.array()
    chosen = choose_subsets(len(x), len(y), choice.subsets, choice.subset_size, choice.seed)
    distance = kernel_distance(x, y, chosen)
    inside = precision_recall(x, y, choice.neighbours)
    return {
        name_in(space, "KD"): distance.mean,
        name_in(space, "KD") + "_deviation": distance.deviation,
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
    return {name: found.mean, f"{name}_deviation": found.deviation}


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
        found |= sample_scores(space, made, real, how)
    return found
