"""The resources of a start, in which nothing is left to be chosen: what all code computes with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from sid_ray.config.auto import AUTO
from sid_ray.config.sections import ResourcesConfig

# What a field is where nobody chooses. Fields of rounding stay so unless a profile says otherwise.
PLAIN: dict[str, Any] = {
    "num_workers": 1,
    "min_workers": 1,
    "use_gpu": False,
    "zero_stage": 1,
    "teacher_zero_stage": 0,
    "offload_optimizer": False,
    "activation_checkpointing": False,
    "overlap_comm": False,
    "compile": "off",
    "micro_batch": 0,
    "threads": 1,
    "memory_format": "channels_last",
    "attention": "sdpa",
}


@dataclass(frozen=True, kw_only=True)
class ChosenResources(ResourcesConfig):
    """The section's fields as values. ``micro_batch`` is still 0 for the group size."""

    num_workers: int
    min_workers: int
    use_gpu: bool
    zero_stage: Literal[0, 1, 2, 3]
    teacher_zero_stage: Literal[0, 3]
    offload_optimizer: bool
    activation_checkpointing: bool
    overlap_comm: bool
    compile: Literal["off", "default", "cudagraphs"]
    micro_batch: int
    threads: int
    memory_format: Literal["channels_last", "contiguous"]
    attention: Literal["sdpa", "xformers"]

    def stage_of(self, role: str) -> int:
        own: int = getattr(self, f"{role}_zero_stage")
        return self.zero_stage if own < 0 else own


def left_open(resources: ResourcesConfig) -> list[str]:
    """The fields that are still to be chosen."""
    names = [each.name for each in dataclasses.fields(resources)]
    return [name for name in names if getattr(resources, name) == AUTO]


def chosen_of(resources: ResourcesConfig) -> ChosenResources:
    """The section as values. Raises ValueError where one is still auto: a start chooses first."""
    if left := left_open(resources):
        raise ValueError(f"resources.{left[0]} is auto: planning/choose.py says what it is here")
    values = {each.name: getattr(resources, each.name) for each in dataclasses.fields(resources)}
    return ChosenResources(**values)


def plain(resources: ResourcesConfig) -> ResourcesConfig:
    """The section with PLAIN's value for each field that is auto."""
    return dataclasses.replace(resources, **{name: PLAIN[name] for name in left_open(resources)})
