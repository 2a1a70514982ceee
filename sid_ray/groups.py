"""Which rank computes which samples. Pure arithmetic: no torch, no Ray.

The global batch is a fixed number of logical groups of ``group_size`` samples. Groups, not ranks,
define the objective; ranks take them round-robin, so any world size from 1 to the number of groups
computes the same sum (design: logical groups).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sid_ray.errors import UserError


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward pass: whole groups, or samples ``start:stop`` of one group.

    ``weight`` 0 marks padding: a rank that has run out of groups repeats one without effect, so
    that every rank runs the same number of collectives (stack: ZeRO-2 reduces in each backward).
    """

    groups: tuple[int, ...]
    start: int
    stop: int
    weight: float = 1.0

    @property
    def opens_group(self) -> bool:
        """Whether this is the first pass over its groups."""
        return self.start == 0


@dataclass(frozen=True)
class GroupPlan:
    """The split of one global batch.

    Args:
        batch_size: samples an iteration.
        group_size: samples a logical group; divides batch_size.
        micro_batch: samples a forward pass may hold: a multiple of group_size packs groups,
            a divisor of it splits them.
        world_size: number of ranks, 1 to the number of groups.

    Raises:
        UserError: when the sizes do not divide, or there are more ranks than groups.
    """

    batch_size: int
    group_size: int
    micro_batch: int
    world_size: int

    def __post_init__(self) -> None:
        if self.batch_size % self.group_size:
            raise UserError(
                f"batch size {self.batch_size} is not a multiple of group size {self.group_size}"
            )
        if self.micro_batch % self.group_size and self.group_size % self.micro_batch:
            raise UserError(
                f"micro batch {self.micro_batch} is neither a multiple nor a divisor of "
                f"group size {self.group_size}"
            )
        if not 1 <= self.world_size <= self.num_groups:
            raise UserError(
                f"{self.world_size} workers for {self.num_groups} groups of {self.group_size}: "
                f"use 1 to {self.num_groups} workers, or smaller groups"
            )

    @property
    def num_groups(self) -> int:
        return self.batch_size // self.group_size

    @property
    def groups_a_pass(self) -> int:
        """Whole groups packed into one pass; 1 where groups are split instead."""
        return max(1, self.micro_batch // self.group_size)

    @property
    def passes_a_group(self) -> int:
        """Passes one group is split into; 1 where groups are packed instead."""
        return max(1, self.group_size // self.micro_batch)

    @property
    def passes_a_rank(self) -> int:
        """Micro-steps of every rank, padding included."""
        rounds = -(-self.num_groups // self.world_size)
        return -(-rounds // self.groups_a_pass) * self.passes_a_group

    def micro_steps(self, rank: int) -> tuple[MicroStep, ...]:
        """The micro-steps of one rank: as many for every rank."""
        mine = tuple(range(rank, self.num_groups, self.world_size))
        packs = [mine[i : i + self.groups_a_pass] for i in range(0, len(mine), self.groups_a_pass)]
        part = self.group_size // self.passes_a_group
        steps = [
            MicroStep(pack, index * part, (index + 1) * part)
            for pack in packs
            for index in range(self.passes_a_group)
        ]
        # Whole groups again: a rank that pads runs the same passes as one that does not.
        again = [replace(step, weight=0.0) for step in steps[: self.passes_a_group]]
        missing = (self.passes_a_rank - len(steps)) // self.passes_a_group
        return tuple(steps + again * missing)
