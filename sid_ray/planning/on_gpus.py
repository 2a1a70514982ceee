"""The choice of resources on GPUs: what fits on each number of workers, and costs least there."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sid_ray.config.auto import AUTO
from sid_ray.config.chosen import PLAIN, left_open
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.planning.choice import ResourceChoice, Workers, by, measured_fields, people
from sid_ray.planning.fit import (
    GIB,
    Gpus,
    Planner,
    gib,
    micro_batch_of,
    micro_batches,
    stage_variants,
)
from sid_ray.planning.host_memory import first_rank_bytes
from sid_ray.planning.lighter import lighter_runs
from sid_ray.planning.machine import Machine
from sid_ray.planning.profile import Profile
from sid_ray.planning.sizes import Fields, Sizes, with_fields

MARGIN = 0.1  # of a GPU that stays free beside the reserve: nothing was measured on one
HOST_SHARE = 0.8  # of a node's memory that offloading and copies for checkpoints may take
EVERY_SIZE, RUNGS = 16, 4  # every number of workers up to 16, then four between n and 2 n
MORE_GPUS = 8  # times as many are looked at, where a run does not fit
FITTING = (
    "zero_stage", "teacher_zero_stage", "micro_batch", "activation_checkpointing",
    "offload_optimizer",
)  # fmt: skip
OF_SIZE = (*FITTING, "compile", "threads")


@dataclass(frozen=True)
class Settled:
    """What a run takes on a number of GPUs, and what it is there."""

    config: DistillConfig
    passes: int
    total: int
    sent: int
    cost: int
    measured: float = 0.0  # seconds an iteration took on such GPUs, 0 for not measured

    @property
    def fields(self) -> dict[str, Any]:
        return {name: getattr(self.config.resources, name) for name in OF_SIZE}


@dataclass(frozen=True)
class OnGpus:
    """The choice for a run with a GPU for each worker."""

    config: DistillConfig
    planner: Planner
    machine: Machine
    profile: Profile | None
    reserve_gib: float

    def gpus(self, workers: int) -> Gpus:
        return Gpus(workers, self.machine.gpu_bytes, int(self.reserve_gib * GIB))

    def choose(self, workers: Workers) -> ResourceChoice:
        """Raises UserError where it fits on no number of workers that there may be."""
        if not self.machine.gpu_bytes:
            raise UserError(f"{self.config.run_name}: the memory of the GPUs is not known")
        found = self.walk(workers, offload=False)
        if not found or (0 < workers.now < min(found)):
            found = self.walk(workers, offload=True) or found
        if not found:
            raise self.refusal(workers.most)
        least = max(workers.least, min(found))
        now = max(workers.now, least)
        own = found[max(size for size in found if size <= now)]
        chosen = replace(
            own.config, resources__num_workers=workers.most, resources__min_workers=least
        )
        chosen.check()
        return ResourceChoice(
            chosen, self.line(workers, least, now, own), where_fields_change(found)
        )

    def walk(self, workers: Workers, offload: bool) -> dict[int, Settled]:
        """Number of workers -> what it takes, downwards until it does not fit.

        Further down it may fit again, as one GPU alone has no buckets, but the way is barred.
        """
        found: dict[int, Settled] = {}
        for size in ladder(workers.least or 1, workers.most, workers.now):
            settled = self.settle(size, offload)
            if settled is None:
                break
            found[size] = settled
        return found

    def settle(self, workers: int, offload: bool) -> Settled | None:
        """What so many workers take; None where nothing fits."""
        found = self.counted(workers, offload)
        return self.measured(workers, found) or found

    def counted(self, workers: int, offload: bool) -> Settled | None:
        """The same by arithmetic alone."""
        gpus = self.gpus(workers)
        for memory in (int(gpus.memory * (1 - MARGIN)), gpus.memory):
            for offloading in (False, True)[: 1 + offload]:
                found: list[Settled] = []
                for config in self.levels(workers, offloading):
                    least = min((it.cost for it in found), default=sys.maxsize)
                    if self.least_cost(config, gpus) < least:  # else no trace for it
                        found += self.candidates(config, gpus, memory)
                if found:
                    return min(found, key=lambda it: (it.cost, it.total))
        return None

    def least_cost(self, config: DistillConfig, gpus: Gpus) -> int:
        """What it would cost if all that a rank has fitted into one pass."""
        whole = micro_batches(config, gpus.gpus)[-1]
        own = [variant for _, variant in self.stages(config, gpus.gpus)]
        return min((self.planner.sent(it, gpus, whole)[1] for it in own), default=sys.maxsize)

    def levels(self, workers: int, offload: bool) -> Iterator[DistillConfig]:
        """Configs without and with activation checkpointing, as far as nobody named it."""
        open_fields = left_open(self.config.resources)
        offloads = offload or self.config.resources.offload_optimizer is True
        fields: dict[str, Any] = {
            "num_workers": workers, "min_workers": workers,
            "overlap_comm": False, "offload_optimizer": offload,
            "threads": self.machine.threads(workers) if offloads else 1,
            "memory_format": family_of(self.planner.description.family).memory_format,
            **{name: PLAIN[name] for name in ("attention", "compile")},
            **(measured_fields(self.profile, 0) if self.profile else {}),
        }  # fmt: skip
        if offload and "offload_optimizer" not in open_fields:
            return  # what was named was tried before
        for again in (False, True) if "activation_checkpointing" in open_fields else (None,):
            own = fields if again is None else {**fields, "activation_checkpointing": again}
            config = with_fields(self.config, {n: own[n] for n in own if n in open_fields})
            if again and config.resources.compile == "cudagraphs":
                continue
            yield config

    def candidates(self, config: DistillConfig, gpus: Gpus, memory: int) -> Iterator[Settled]:
        """Every ZeRO stage that fits, with the largest micro-batch that does."""
        open_fields, least = left_open(self.config.resources), sys.maxsize
        for stage, variant in self.stages(config, gpus.gpus):
            if "3" in stage and variant.resources.compile != "off":
                if "compile" not in open_fields:
                    continue
                variant = replace(variant, resources__compile="off")
            if "teacher" in stage and self.planner.least_cost(variant, gpus, memory) >= least:
                continue  # and no trace for it
            if config.resources.micro_batch == AUTO:
                micro = self.planner.largest(variant, gpus, memory)
            else:
                micro = micro_batch_of(config)
            if not micro or self.host_lacks(variant, gpus, micro):
                continue
            total = self.planner.peak(variant, gpus, micro).total
            if total > memory:
                continue
            own = replace(variant, resources__micro_batch=micro)
            sent, cost = self.planner.sent(own, gpus, micro)
            passes, least = own.group_plan(gpus.gpus).passes_a_rank, min(least, cost)
            yield Settled(own, passes, total, sent, cost)

    def stages(self, config: DistillConfig, workers: int) -> Iterator[tuple[str, DistillConfig]]:
        """Name and config of each stage that nobody has ruled out."""
        asked = config.resources
        for name, variant in stage_variants(config, workers).items():
            has = variant.resources
            if asked.zero_stage in (AUTO, has.zero_stage) and asked.teacher_zero_stage in (
                AUTO, has.teacher_zero_stage,
            ):  # fmt: skip
                yield name, replace(variant, resources__micro_batch=asked.micro_batch)

    def host_lacks(self, config: DistillConfig, gpus: Gpus, micro_batch: int) -> bool:
        """Whether a node's memory is too small for what its workers keep there."""
        size, _ = self.machine.smallest_host(gpus.gpus)
        return bool(size) and self.host_needs(config, gpus, micro_batch) > HOST_SHARE * size

    def host_needs(self, config: DistillConfig, gpus: Gpus, micro_batch: int) -> int:
        """Bytes of a node's own memory: of its workers, the first of which may be among them.

        The larger of what they take as they start, and later.
        """
        _, workers = self.machine.smallest_host(gpus.gpus)
        first = first_rank_bytes(self.planner.sizes(config), config.evaluation.every > 0)
        later = workers * self.planner.host(config, gpus, micro_batch) + first
        return max(later, workers * self.planner.host_start(config, gpus, micro_batch))

    def measured(self, workers: int, counted: Settled | None) -> Settled | None:
        """What bench measured for so many GPUs of this kind, where it fitted: it was there."""
        profile = self.profile
        if profile is None or profile.gpus != workers or counted is None:
            return None
        if profile.peak_gib * GIB > self.machine.gpu_bytes:
            return None
        open_fields = left_open(self.config.resources)
        own = {name: value for name, value in profile.settings.items() if name in open_fields}
        config = with_fields(counted.config, own)
        try:
            config.check()
            passes = config.group_plan(workers).passes_a_rank
        except UserError:  # what a person named does not go with it
            return None
        sent, cost = self.planner.sent(config, self.gpus(workers), micro_batch_of(config))
        total = int(profile.peak_gib * GIB)
        return Settled(config, passes, total, sent, cost, profile.seconds)

    def refusal(self, workers: int) -> UserError:
        """Why nothing fits on so many GPUs, and the nearest that does."""
        machine, ways = self.gpus(workers), list[str]()
        who = f"{self.config.run_name} does not fit on {on_so_many(workers, machine.memory)}"
        size, _ = self.machine.smallest_host(workers)
        host = min(self.host_needs(*own) for own in self.smallest(machine))
        if size and host > HOST_SHARE * size:
            return UserError(
                f"{who}: the nodes' own memory of {gib(size)} is too small for the networks that "
                "workers read as they start, for copies of a checkpoint, and for what is offloaded:"
                f" at least {gib(host / HOST_SHARE)} each"
            )
        named = [name for name in FITTING if getattr(self.config.resources, name) != AUTO]
        free = dataclasses.replace(
            self, config=with_fields(self.config, dict.fromkeys(named, AUTO)), profile=None
        )
        if named and free.settle(workers, offload=True):
            flags = ", ".join(f"--resources.{name.replace('_', '-')}" for name in named)
            ways.append(f"{flags} auto")
        for flag, lighter in lighter_runs(self.config, self.planner.description.family):
            other = dataclasses.replace(self, config=lighter, profile=None)
            if other.settle(workers, offload=True):
                ways.append(flag)
                break
        most = min(self.config.group_plan(1).num_groups, MORE_GPUS * workers)
        if self.config.adapter.roles == "both" and self.config.adapter.rank:
            most = 0  # the base is whole on each: more of them need as much
        more = range(workers + 1, most + 1)
        if count := next((n for n in more if self.settle(n, offload=False)), 0):
            ways.append(on_so_many(count, machine.memory))
        least = self.least(machine)
        ways.append(on_so_many(workers, math.ceil(least / GIB) * GIB))
        return UserError(
            f"{who}: the least is {gib(least)} a GPU, with all that saves memory. What fits: "
            f"{'; or '.join(ways)}"
        )

    def least(self, gpus: Gpus) -> int:
        """Bytes of what needs least on a GPU, of what its host has memory for."""
        fitting = (own for own in self.smallest(gpus) if not self.host_lacks(*own))
        return min(self.planner.peak(*own).total for own in fitting)

    def smallest(self, gpus: Gpus) -> Iterator[tuple[DistillConfig, Gpus, int]]:
        """All that a run may be there, one image a pass where no micro-batch is named."""
        named = self.config.resources.micro_batch != AUTO
        for offload in (False, True):
            for config in self.levels(gpus.gpus, offload):
                for _, variant in self.stages(config, gpus.gpus):
                    yield variant, gpus, micro_batch_of(config) if named else 1

    def line(self, workers: Workers, least: int, now: int, own: Settled) -> str:
        """What is chosen for the workers of now, and why."""
        resources = own.config.chosen
        size = self.machine.gpu_bytes / GIB
        parts = [people(workers, f"GPU of {size:.0f} GiB")]
        if workers.now < least:
            parts[0] += f" (waiting for {least}, fewer do not fit)"
        elif workers.most > least:
            parts[0] += f", {least} at least" if least > 1 else ""
        if now > 1 or resources.offload_optimizer:
            third = ", teacher too" if resources.teacher_zero_stage == 3 else ""
            parts.append(f"ZeRO-{resources.zero_stage}{third} ({self.why_stage(own)})")
        filled = f"{own.total / GIB:.0f} of {size:.0f} GiB"
        several = "es" * (own.passes != 1)
        parts.append(
            f"micro-batch {micro_batch_of(own.config)} ({own.passes} pass{several}, {filled})"
        )
        if resources.activation_checkpointing:
            parts.append("activation checkpointing")
        if resources.offload_optimizer:
            several = "s" * (resources.threads != 1)
            parts.append(f"optimizer in host memory ({resources.threads} thread{several})")
        measured = " (not measured here: sid-ray bench)" * (not self.profile)
        parts.append(f"compile {resources.compile}{measured}")
        return ", ".join(parts) + by(self.profile)

    def why_stage(self, own: Settled) -> str:
        """What was measured of an iteration, or what a GPU sends in one."""
        if own.measured:
            return f"{own.measured:.2f} s an iteration measured"
        unit, name = (GIB, "GiB") if own.sent >= GIB else (1 << 20, "MiB")
        return f"{own.sent / unit:,.1f} {name} sent an iteration"


def on_so_many(gpus: int, memory: int) -> str:
    """'8 GPUs of 80.0 GiB'."""
    return f"{gpus} GPU{'s' * (gpus != 1)} of {gib(memory)}"


def ladder(least: int, most: int, now: int) -> list[int]:
    """Numbers of workers that are settled by themselves, the largest first.

    Between two of them what fits on the smaller one is taken: it fits on more.
    """
    sizes, rung = {most, least} | ({now} if least <= now <= most else set()), least
    while rung < most:
        sizes.add(rung)
        rung += 1 if rung < EVERY_SIZE else max(1, rung // RUNGS)
    return sorted(sizes, reverse=True)


def where_fields_change(found: Mapping[int, Settled]) -> Sizes:
    """(workers, fields) where they change, the fewest workers first."""
    steps: list[tuple[int, Fields]] = []
    for size in sorted(found):
        if not steps or steps[-1][1] != found[size].fields:
            steps.append((size, found[size].fields))
    return tuple(steps)
