"""Random draws and data of micro-steps, as a training step asks for them.

Every number is keyed by (seed, stream, images_seen, group); see diffusion/rng.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sid_ray.diffusion.rng import PLAIN, draw_group
from sid_ray.groups import GroupPlan, MicroStep
from sid_ray.types import Batch, Draw, DrawSpec, Pick


class BatchSource(Protocol):
    """What the data set gives a step."""

    @property
    def shape(self) -> Sequence[int]:
        """Shape of one sample, (C, H, W)."""

    def batch(self, pick: Pick) -> Batch:
        """Labels, prompts and images of these samples."""


Draws = Callable[[int, int, MicroStep], tuple[Draw, Batch]]  # (stream, images_seen, micro-step)


def draws_of(
    source: BatchSource, plan: GroupPlan, seed: int, device: torch.device, spec: DrawSpec = PLAIN
) -> Draws:
    """Keyed draws for micro-steps: whole groups joined, or a part of one group cut out."""
    inside = torch.arange(plan.group_size)

    def draws(stream: int, images_seen: int, micro_step: MicroStep) -> tuple[Draw, Batch]:
        groups = [
            draw_group(seed, stream, images_seen, group, plan.group_size, source.shape, spec)
            for group in micro_step.groups
        ]
        cut = slice(micro_step.start, micro_step.stop)

        def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
            found = [part[cut] for part in parts if part is not None]
            return torch.cat(found).to(device) if found else None

        fields = zip(*(draw for draw, _ in groups), strict=True)
        draw = Draw(*(joined(parts) for parts in fields))  # type: ignore[arg-type]
        uniform = torch.cat([data[cut] for _, data in groups])
        positions = torch.cat(
            [images_seen + group * plan.group_size + inside[cut] for group in micro_step.groups]
        )
        batch = source.batch(Pick(uniform, positions, stream, images_seen))
        return draw, Batch(*(None if part is None else part.to(device) for part in batch))

    return draws
