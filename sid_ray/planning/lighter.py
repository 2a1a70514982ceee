"""Runs that need less memory than one that does not fit: other runs, for a person to choose."""

from __future__ import annotations

from collections.abc import Iterator

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.registry import family_of
from sid_ray.recipes.lora import RANK
from sid_ray.training.adapter_settings import base_precision


def lighter_runs(config: DistillConfig, family: str) -> Iterator[tuple[str, DistillConfig]]:
    """(flag, config) of each: adapters in place of whole networks, or over a smaller base."""
    if not config.adapter.rank:
        resources, lighter = config.resources, replace(config, adapter__rank=RANK)
        shared = 3 in (resources.zero_stage, resources.teacher_zero_stage)  # refused for adapters
        if family_of(family).adapter_targets and not shared:
            yield f"--adapter.rank {RANK}", lighter
        return
    held = base_precision(config, family)
    other_half = "bfloat16" if held == "float16" else "float16"
    bases = [base for base in family_of(family).bases if base != other_half]
    for base in bases[bases.index(held) + 1 :]:
        yield f"--adapter.base {base}", replace(config, adapter__base=base)
