"""A pipeline in one file, as a family takes it apart: a contract beside ``Family``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PipelinePart:
    """One part of a pipeline's folder: its config.json, and its tensors under today's names."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class SingleFile:
    """What lay in one file.

    Attributes:
        parts: by the names of a pipeline's folders; what the file lacks is not there.
        scheduler: what scheduler/scheduler_config.json would say; empty where nothing is known.
        standard: source of a pipeline whose tokenizers go with the text encoders, which no such
            file holds.
        unsaid: what the file does not say and was assumed, in words; empty where it says all.
    """

    parts: Mapping[str, PipelinePart]
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    standard: str = ""
    unsaid: str = ""
