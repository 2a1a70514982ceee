"""What of a run's resources depends on how many workers there are: the driver chooses it for every
number that there may be, and each start of the workers looks its own up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sid_ray.config.distill_config import DistillConfig, replace

Fields = Mapping[str, Any]  # of the resources section
Sizes = tuple[tuple[int, Fields], ...]  # (workers, fields) from so many on, the fewest first


def at_size(
    config: DistillConfig, sizes: Sizes, workers: int, most_images: int = 0
) -> DistillConfig:
    """The config for so many workers: it fits on more than it was settled for, too.

    ``most_images``: no larger micro-batch than this, as a larger one had no memory; 0 for any.
    """
    fields: Fields = {}
    for least, own in sizes:
        if least <= workers:
            fields = own
    config = with_fields(config, fields)
    micro = config.chosen.micro_batch or config.training.group_size
    if most_images and most_images < micro:
        config = replace(config, resources__micro_batch=most_images)
    return config


def resources_in_words(config: DistillConfig) -> str:
    """'ZeRO-1, micro-batch 32': what a start of the workers says of its resources."""
    resources = config.chosen
    micro = resources.micro_batch or config.training.group_size
    words = [f"ZeRO-{resources.zero_stage}", f"micro-batch {micro}"]
    words += ["teacher shared out"] * (resources.teacher_zero_stage == 3)
    words += ["activation checkpointing"] * resources.activation_checkpointing
    words += ["optimizer in host memory"] * resources.offload_optimizer
    return ", ".join(words)


def with_fields(config: DistillConfig, fields: Fields) -> DistillConfig:
    return replace(config, **{f"resources__{name}": value for name, value in fields.items()})
