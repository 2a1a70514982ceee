"""Random draws and data of micro-steps, as a training step asks for them.

Every number is keyed by (seed, stream, images_seen, group), see diffusion/rng.py, so it does not
matter when it is drawn, nor by whom: ``draws_of`` draws when a step asks, draws_ahead.py before.
Whole groups are drawn and kept until other groups are asked for: a group that is split over passes
is drawn once, not once for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sid_ray.diffusion.rng import NO_ROOM, PLAIN, Room, draw_group
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


class DrawUnit(NamedTuple):
    """What is drawn at once: whole groups of one phase, those of a pass or one that is split."""

    stream: int
    images_seen: int
    groups: tuple[int, ...]


class Drawn(NamedTuple):
    """A unit's draws and data, one group after another."""

    draw: Draw
    batch: Batch

    def each(self, change: Callable[[Tensor], Tensor]) -> Drawn:
        """The same with every tensor changed."""

        def changed(values: Sequence[Any]) -> list[Any]:
            return [change(value) if isinstance(value, Tensor) else value for value in values]

        return Drawn(Draw(*changed(self.draw)), Batch(*changed(self.batch)))

    def tensors(self) -> list[Tensor]:
        return [value for value in (*self.draw, *self.batch) if isinstance(value, Tensor)]

    def part(self, start: int, stop: int) -> Drawn:
        """Samples ``start:stop``; no copy."""
        whole = start == 0 and stop >= len(self.draw.time)
        return self if whole else self.each(lambda value: value[start:stop])


def one_after_another(parts: Sequence[Any]) -> Any:
    """One field of several groups: tensors one after another, or what is the same for all."""
    if not isinstance(parts[0], Tensor):
        return parts[0]
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@dataclass(frozen=True)
class Maker:
    """Makes units on the host.

    Args:
        source: the data set; what it keeps on a GPU (prompts' embeddings) stays there.
        plan, seed, spec: the run's; ``spec`` the objective's.
        pinned: the large draws lie in memory from which a GPU copies without waiting.
    """

    source: BatchSource
    plan: GroupPlan
    seed: int
    spec: DrawSpec = PLAIN
    pinned: bool = False

    @torch.no_grad()
    def __call__(self, unit: DrawUnit) -> Drawn:
        stream, images_seen, groups = unit
        size, shape = self.plan.group_size, self.source.shape
        room = Room.for_samples(len(groups) * size, shape, self.spec, self.pinned)
        found = [
            draw_group(
                self.seed,
                stream,
                images_seen,
                group,
                size,
                shape,
                self.spec,
                room.part(index * size, (index + 1) * size),
            )
            for index, group in enumerate(groups)
        ]
        small = [NO_ROOM.filled(draw) for draw, _ in found]  # the large fields are joined already
        draw = room.filled(Draw(*map(one_after_another, zip(*small, strict=True))))
        first = torch.tensor(groups)[:, None] * size + images_seen
        positions = (first + torch.arange(size)).flatten()
        uniform = one_after_another([data for _, data in found])
        return Drawn(draw, self.source.batch(Pick(uniform, positions, stream, images_seen)))


def draws_of(
    source: BatchSource, plan: GroupPlan, seed: int, device: torch.device, spec: DrawSpec = PLAIN
) -> Draws:
    """Keyed draws for micro-steps, made when they are asked for."""
    make = Maker(source, plan, seed, spec)
    kept: dict[DrawUnit, Drawn] = {}  # the last one

    def draws(stream: int, images_seen: int, micro_step: MicroStep) -> tuple[Draw, Batch]:
        unit = DrawUnit(stream, images_seen, micro_step.groups)
        if unit not in kept:
            kept.clear()
            kept[unit] = make(unit).each(lambda value: value.to(device))
        return seen_by(micro_step, kept[unit])

    return draws


def seen_by(micro_step: MicroStep, drawn: Drawn) -> Drawn:
    """What a micro-step has of its groups: all of several, or a part of one."""
    if len(micro_step.groups) > 1:
        return drawn
    return drawn.part(micro_step.start, micro_step.stop)
