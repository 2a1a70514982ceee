"""``auto``: what a run takes of the machines that are there. The one place where it is resolved.

    choose_resources(config, description, machine, text, profile) -> ResourceChoice
    choice.config     everything concrete, for the workers that there are now
    choice.sizes      what another number of workers takes instead (sizes.py looks it up)
    choice.line       one line: what was chosen, and why

Pure arithmetic over traced activations: no Ray, no GPU, the same on every machine. What a person
named stays; only what is ``auto`` is chosen:

1. GPUs where there are any, one worker each, as many as there are groups.
2. Of the ZeRO stages, each with the largest micro-batch of whole groups that fits (fit.PASS says
   what a pass costs), the one where passes and sending cost least; of equals the one that needs
   less memory.
3. Computing blocks again in the backward pass (a quarter more arithmetic, both phases together)
   only where without it no stage has ENOUGH images in a pass: with fewer a GPU mostly reads
   weights and launches kernels. Offloading, which moves 16 bytes a parameter over PCIe in each
   update, only where nothing else fits at all.
4. compile, overlap_comm, memory format and attention as PLAIN has them, until sid-ray bench has
   measured this workload on this kind of GPU: then what it found, micro-batch and stage included.

A run that may shrink and grow is settled for each number of workers by itself: at a stage and a
micro-batch that fill 16 GPUs it would not fit on 8. State is read at any stage, so that this costs
nothing but the look-up. A GPU is filled to MARGIN; only where nothing fits so, to the brim.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sid_ray.config.auto import AUTO
from sid_ray.config.chosen import PLAIN, left_open
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.planning.fit import (
    GIB,
    Gpus,
    Planner,
    check_any_fits,
    fitting,
    micro_batch_of,
    micro_batches,
    stage_variants,
)
from sid_ray.planning.machine import Machine
from sid_ray.planning.memory import RESERVE_GIB, host_bytes
from sid_ray.planning.profile import Profile, read_profile
from sid_ray.planning.sizes import Fields, Sizes, with_fields
from sid_ray.recipes.known_networks import text_bytes
from sid_ray.weights.description import ModelDescription

MARGIN = 0.1  # of a GPU that stays free beside the reserve: nothing was measured on one
ENOUGH = 8  # a pass is large enough whose activations, kept whole, are an eighth of the GPU
HOST_SHARE = 0.8  # of a node's memory that may be offloaded to
# A CPU's pass: half as many images took 1.3 times the seconds on small networks (docs/speed.md).
# Large images fill a core's caches alone, and their activations its memory.
CPU_IMAGES, CPU_VALUES = 32, 32 * 3 * 16 * 16
EVERY_SIZE, RUNGS = 16, 4  # every number of workers up to 16, then four between n and 2 n
OF_SIZE = (
    "zero_stage", "teacher_zero_stage", "micro_batch", "activation_checkpointing",
    "offload_optimizer", "compile",
)  # fmt: skip
ON_ANY_SIZE = ("compile", "memory_format", "attention", "overlap_comm")  # of a profile


@dataclass(frozen=True)
class ResourceChoice:
    """A config in which nothing is auto, and the line that says what was chosen and why.

    ``sizes``: what another number of workers takes instead.
    """

    config: DistillConfig
    line: str
    sizes: Sizes = ()


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


def choose_resources(
    config: DistillConfig,
    description: ModelDescription,
    machine: Machine,
    text: int = 0,
    profile: Profile | None = None,
    reserve_gib: float = RESERVE_GIB,
) -> ResourceChoice:
    """What the run takes of a machine.

    Args:
        description: the teacher's network.
        text: bytes of its text encoder.
        profile: what was measured for this run on this kind of machine.
        reserve_gib: of a GPU, for what no tensor is.

    Raises UserError in one line where the run cannot be there, with what does fit.
    """
    on_gpu = wants_gpus(config, machine)
    config = replace(config, resources__use_gpu=on_gpu)
    workers = worker_numbers(config, machine, on_gpu)
    if on_gpu:
        return OnGpus(config, Planner(description, text), machine, profile, reserve_gib).choose(
            workers
        )
    return on_cpus(config, description, machine, workers, profile)


def choose_measured(
    config: DistillConfig,
    description: ModelDescription,
    machine: Machine,
    tell: Callable[[str], None] = lambda text: None,
    reserve_gib: float = RESERVE_GIB,
) -> ResourceChoice:
    """``choose_resources`` with what bench has measured for this run on such a machine.

    ``tell`` hears of a profile that is there and cannot be used. Raises UserError like it.
    """
    on_gpu = wants_gpus(config, machine)
    name = machine.gpu if on_gpu else "cpu"
    now = worker_numbers(config, machine, on_gpu).now
    profile = read_profile(config, description, name, now, tell) if name else None
    return choose_resources(config, description, machine, text_bytes(config), profile, reserve_gib)


def wants_gpus(config: DistillConfig, machine: Machine) -> bool:
    asked = config.resources.use_gpu
    return machine.has_gpus if asked == AUTO else asked


@dataclass(frozen=True)
class Workers:
    """How many there are now, may be at most, and shall be at least, 0 for as few as fit."""

    now: int
    most: int
    least: int


def worker_numbers(config: DistillConfig, machine: Machine, on_gpu: bool) -> Workers:
    """Raises UserError where there is no room for them and none will come."""
    least, named = config.resources.min_workers, config.resources.num_workers
    groups, offered = config.group_plan(1).num_groups, machine.offers(on_gpu)
    kind = "GPU" if on_gpu else "CPU"
    if machine.fixed:
        lacking = offered < (1 if named == AUTO else named) if on_gpu else False
        if lacking:
            raise UserError(no_room(config, machine, offered))
        most = min(groups, max(offered, 1)) if named == AUTO else named
        return Workers(most, most, most)
    can_come = max(machine.can_hold.get(kind, groups), offered, 1)
    most = min(groups, can_come) if named == AUTO else named
    if least != AUTO and least > most:
        raise UserError(
            f"resources.min_workers is {least}, and the cluster has room for {most} workers at "
            f"most, a {kind} each: lower --resources.min-workers"
        )
    return Workers(min(offered, most), most, 0 if least == AUTO else least)


def no_room(config: DistillConfig, machine: Machine, offered: int) -> str:
    """Why a fixed machine cannot hold a run on GPUs."""
    gpus = int(sum(node.gpus for node in machine.nodes))
    if not gpus:
        why = machine.no_gpu or "no GPU is here"
        return (
            f"{config.run_name} asks for GPUs (resources.use_gpu): {why}; join a cluster with "
            "RAY_ADDRESS, or give --resources.no-use-gpu"
        )
    named = config.resources.num_workers
    wanted = 1 if named == AUTO else named
    beside = machine.taken.get("GPU", 0)
    who = f"{wanted} worker{'s' * (wanted != 1)}"
    if beside:
        taken = f"the evaluator (evaluation.resources GPU={beside:g})"
        return (
            f"{who} and {taken} need {wanted + beside:g} GPUs, here are {gpus}: lower "
            "--resources.num-workers, or leave --evaluation.resources empty"
        )
    return f"{who} need {wanted} GPUs, here are {gpus}: lower --resources.num-workers"


# On CPUs ------------------------------------------------------------------------------------------


def cpu_micro_batch(config: DistillConfig, description: ModelDescription) -> int:
    """Images in a pass: whole groups, as many as small images make cheaper; at least one group."""
    size, values = config.training.group_size, 1
    for extent in family_of(description.family).shape(description.network):
        values *= extent
    images = min(CPU_IMAGES, CPU_VALUES // values, config.training.batch_size)
    return size * max(1, images // size)


def on_cpus(
    config: DistillConfig,
    description: ModelDescription,
    machine: Machine,
    workers: Workers,
    profile: Profile | None,
) -> ResourceChoice:
    """Traces nothing: a start takes no longer than without auto."""
    now = max(workers.now, 1)
    settled = {
        **PLAIN,
        "num_workers": workers.most,
        "min_workers": workers.least or 1,
        "micro_batch": cpu_micro_batch(config, description),
        **(measured_fields(profile, now) if profile else {}),
    }
    chosen = with_fields(config, {name: settled[name] for name in left_open(config.resources)})
    chosen.check()
    micro = micro_batch_of(chosen)
    groups = micro / config.training.group_size
    packed = f"{groups:g} groups in a pass" if groups > 1 else "a group in a pass"
    stage = f", ZeRO-{chosen.resources.zero_stage}" if workers.most > 1 else ""
    line = f"{people(workers, 'CPU')}{stage}, micro-batch {micro} ({packed}){by(profile)}"
    return ResourceChoice(chosen, line)


def people(workers: Workers, kind: str) -> str:
    """'2 workers, a CPU each'."""
    if workers.now == workers.most:
        several = f"{workers.most} workers, a {kind} each"
        return several if workers.most > 1 else f"1 worker on a {kind}"
    return f"{workers.now} of up to {workers.most:,} workers, a {kind} each"


def by(profile: Profile | None) -> str:
    return "; as sid-ray bench measured here" if profile else ""


def measured_fields(profile: Profile, workers: int) -> dict[str, Any]:
    """What of a profile holds for so many workers: all where they were as many."""
    same = profile.gpus == workers
    return {n: value for n, value in profile.settings.items() if same or n in ON_ANY_SIZE}


# On GPUs ------------------------------------------------------------------------------------------


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
        return ResourceChoice(chosen, self.line(workers, least, now, own), steps_of(found))

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
        enough = self.enough(gpus)
        for memory in (int(gpus.memory * (1 - MARGIN)), gpus.memory):
            for offloading in (False, True)[: 1 + offload]:
                some: list[Settled] = []
                for config in self.levels(workers, offloading):
                    fit = list(self.candidates(config, gpus, memory))
                    large = [it for it in fit if micro_batch_of(it.config) >= enough]
                    if large:
                        return best(large)
                    some += fit
                if some:
                    return best(some)
        return None

    def levels(self, workers: int, offload: bool) -> Iterator[DistillConfig]:
        """Configs without and with activation checkpointing, as far as nobody named it."""
        open_fields = left_open(self.config.resources)
        fields: dict[str, Any] = {
            "num_workers": workers, "min_workers": workers,
            "overlap_comm": False, "offload_optimizer": offload,
            **{name: PLAIN[name] for name in ("memory_format", "attention", "compile")},
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
            if not micro or self.host_lacks(variant, gpus):
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

    def enough(self, gpus: Gpus) -> int:
        """Images from which a pass is large enough, or all that a rank has."""
        if self.config.resources.micro_batch != AUTO:
            return 1
        level = with_fields(self.config, {"activation_checkpointing": False})
        for images in micro_batches(self.config, gpus.gpus):
            if max(self.planner.activations(level, images).values()) * ENOUGH >= gpus.memory:
                return images
        return micro_batches(self.config, gpus.gpus)[-1]

    def host_lacks(self, config: DistillConfig, gpus: Gpus) -> bool:
        """Whether a node's memory is too small for what is offloaded to it."""
        needed = host_bytes(self.planner.network, self.planner.layout(config, gpus))
        share = self.machine.host_share(gpus.gpus)
        return bool(share) and needed > HOST_SHARE * share

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
        """Why nothing fits, and the nearest that does."""
        gpus, named = self.gpus(workers), self.config.resources
        try:
            check_any_fits(self.planner, self.config, gpus)
            if named.micro_batch != AUTO or named.zero_stage != AUTO:
                fitting(self.planner, self.config, gpus)
        except UserError as error:
            return error
        return UserError(
            f"{self.config.run_name} does not fit on {workers} GPUs of "
            f"{self.machine.gpu_bytes / GIB:.1f} GiB with what is named of its resources: leave "
            "--resources.zero-stage, --resources.micro-batch and the like to auto"
        )

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
            parts.append(f"ZeRO-{resources.zero_stage}{third} ({self.why_stage(own, now)})")
        filled = f"{own.total / GIB:.0f} of {size:.0f} GiB"
        several = "es" * (own.passes != 1)
        parts.append(
            f"micro-batch {micro_batch_of(own.config)} ({own.passes} pass{several}, {filled})"
        )
        if resources.activation_checkpointing:
            parts.append("activation checkpointing")
        if resources.offload_optimizer:
            parts.append("optimizer in host memory")
        measured = " (not measured here: sid-ray bench)" * (not self.profile)
        parts.append(f"compile {resources.compile}{measured}")
        return ", ".join(parts) + by(self.profile)

    def why_stage(self, own: Settled, now: int) -> str:
        """What a GPU sends in an iteration, and would at the neighbouring stage that also fits."""
        sent = f"{own.sent / GIB:,.1f} GiB sent an iteration"
        if own.measured:
            return f"{own.measured:.2f} s an iteration measured"
        return sent


def best(settled: list[Settled]) -> Settled:
    return min(settled, key=lambda it: (it.cost, it.total))


def ladder(least: int, most: int, now: int) -> list[int]:
    """Numbers of workers that are settled by themselves, the largest first.

    Between two of them what fits on the smaller one is taken: it fits on more.
    """
    sizes, rung = {most, least} | ({now} if least <= now <= most else set()), least
    while rung < most:
        sizes.add(rung)
        rung += 1 if rung < EVERY_SIZE else max(1, rung // RUNGS)
    return sorted(sizes, reverse=True)


def steps_of(found: Mapping[int, Settled]) -> Sizes:
    """(workers, fields) where they change, the fewest workers first."""
    steps: list[tuple[int, Fields]] = []
    for size in sorted(found):
        if not steps or steps[-1][1] != found[size].fields:
            steps.append((size, found[size].fields))
    return tuple(steps)
