"""What of a run fits on its GPUs, and what it costs there. Knows neither Ray nor a GPU."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import sys
from dataclasses import dataclass
from typing import Any

from sid_ray.config.auto import AUTO
from sid_ray.config.chosen import ChosenResources
from sid_ray.config.distill_config import (
    DistillConfig,
    replace,
    stages_for,
    with_plain_resources,
)
from sid_ray.distributed.deepspeed_role import PERSISTENT, deepspeed_config, needs_deepspeed
from sid_ray.groups import GroupPlan
from sid_ray.planning.host_memory import host_bytes, moved_bytes, start_bytes
from sid_ray.planning.memory import (
    GIB,
    RESERVE_GIB,
    TEACHER,
    TRAINED,
    WORD,
    Layout,
    Moment,
    Network,
    checkpoint_bytes,
    peak,
    sent_bytes,
)
from sid_ray.planning.network_sizes import (
    base_bytes,
    dequantised_bytes,
    frozen_bytes,
    sizes_of,
)
from sid_ray.planning.trace_cache import kept_trace
from sid_ray.planning.trace_memory import Traced
from sid_ray.training.adapter_settings import base_precision
from sid_ray.training.assemble import adam_of
from sid_ray.weights.folder import ModelDescription

LIVE = 1_000_000_000  # DeepSpeed's default of both keys below
LIVE_KEYS = ("stage3_max_live_parameters", "stage3_max_reuse_distance")
# What a pass of both phases costs beside its images, in networks that a GPU would send meanwhile:
# each pass reads, casts and normalises the weights of all networks and launches every kernel. For
# EDM2-XXL 558 GiB move through memory (docs/scaling.md), 0.18 s on an H100, in which NVLink, or
# InfiniBand with 400 Gb/s a GPU, sends 5.7 GiB ten times. Computing blocks again adds a quarter of
# an image's arithmetic: of its 12,906 GFLOP, 33 ms at 40 % of an H100's half precision, in which
# two networks are sent; float32 without TF32 takes 15 times as long. Counted and assumed, not
# measured.
PASS = 10.0
AGAIN, AGAIN_FLOAT32 = 0.5, 7.5  # an image
# A byte that offloading moves over PCIe, in bytes sent. At the rate of PASS, 340 GB/s, seven go for
# one of PCIe's version 5 and 14 of version 4 (25 GB/s); nothing is computed meanwhile. Assumed.
PCIE = 10.0
TRACED_IMAGES = 16  # with 1 and the whole batch: beyond it a pass grows evenly
NONE = "none"  # the stage of a run whose roles are plain torch's


@dataclass(frozen=True)
class Gpus:
    """GPUs, and bytes of each; ``reserve`` of them are no tensor's."""

    gpus: int
    memory: int
    reserve: int = int(RESERVE_GIB * GIB)

    @classmethod
    def of(cls, gpus: int, memory_gib: float, reserve_gib: float = RESERVE_GIB) -> Gpus:
        return cls(gpus, int(memory_gib * GIB), int(reserve_gib * GIB))


@dataclass(frozen=True)
class StageRow:
    """One ZeRO stage: its fullest moment at the config's micro-batch, and what fits.

    ``largest`` is 0 where no micro-batch fits; ``sent`` bytes a GPU and iteration; ``cost`` what
    passes, sending and offloading cost together, in bytes sent. ``host`` is a rank's host memory.
    """

    stage: str
    config: DistillConfig
    peak: Moment
    fits: bool
    largest: int
    sent: int
    cost: int
    host: int


def plainly(config: DistillConfig) -> ChosenResources:
    """The resources with the plainest value where nothing is chosen yet."""
    return with_plain_resources(config).chosen


def micro_batch_of(config: DistillConfig) -> int:
    asked = config.resources.micro_batch
    return config.training.group_size if asked in (0, AUTO) else asked


def plan_of(config: DistillConfig, gpus: int, micro_batch: int) -> GroupPlan:
    """Which images each of so many GPUs has, in passes of this size."""
    return dataclasses.replace(config.group_plan(1), world_size=gpus, micro_batch=micro_batch)


def micro_batches(config: DistillConfig, gpus: int) -> list[int]:
    """Micro-batches that a rank has a use for: divisors of a group, and whole groups.

    Of several packings with as many passes, the smallest. Raises UserError for more GPUs than
    groups.
    """
    size = config.training.group_size
    plan = dataclasses.replace(config.group_plan(1), world_size=gpus)
    rounds = -(-plan.num_groups // gpus)
    parts = {part for part in range(1, size + 1) if size % part == 0}
    return sorted(parts | {size * -(-rounds // passes) for passes in range(1, rounds + 1)})


def stage_variants(config: DistillConfig, gpus: int) -> dict[str, DistillConfig]:
    """Stage -> config, for the four stages and for stage 3 of the teacher too; without stage 3
    where there are adapters, whose base all GPUs have whole.

    On one GPU there is one way, or three where it offloads: what is offloaded differs in buckets.
    """
    resources = plainly(config)
    config = with_plain_resources(config)
    if not needs_deepspeed(resources, gpus):
        return {NONE: config}
    adapters, fitting = config.adapter.rank > 0, stages_for(config.training)
    if resources.offload_optimizer and len(fitting) < 4:
        return {}  # with state in fewer bits nothing is offloaded
    if gpus == 1:
        ones: tuple[int, ...] = (1, 2) if adapters else (1, 2, 3)
        return {str(n): replace(config, resources__zero_stage=n) for n in ones if n in fitting}
    stages = [n for n in ((1, 2) if resources.offload_optimizer else (0, 1, 2)) if n in fitting]
    found = {str(n): replace(config, resources__zero_stage=n) for n in stages}
    if adapters or 3 not in fitting:
        return found
    if resources.teacher_zero_stage == 0:
        found["3"] = replace(config, resources__zero_stage=3)
    both = {"resources__zero_stage": 3, "resources__teacher_zero_stage": 3}
    found["3, teacher"] = replace(config, **both)
    return found


@functools.cache
def teacher_size(description: str, precision: str, base: str) -> int:
    """Bytes of a teacher's weights, of its description's JSON: seconds for a large network.

    ``base`` is how it is held as the base of adapters, empty where there are none; 0 then for a
    teacher in float32.
    """
    teacher = ModelDescription.from_json(description, "the teacher")
    return base_bytes(teacher, base, precision) if base else frozen_bytes(teacher, precision)


@functools.cache
def dequantised_size(description: str, base: str, precision: str) -> int:
    """``dequantised_bytes`` of a description's JSON."""
    teacher = ModelDescription.from_json(description, "the teacher")
    return dequantised_bytes(teacher, base, precision)


class Planner:
    """Memory of variants of one run: traces each network once, then it is arithmetic.

    ``description`` is the teacher's, ``text`` the bytes of its text encoder.
    """

    def __init__(self, description: ModelDescription, text: int = 0):
        self.description, self.text = description, text
        self._traces: dict[tuple, Traced] = {}
        self._networks: dict[Any, Network] = {}

    @property
    def network(self) -> Network:
        """Sizes of the whole network."""
        return self.sizes(None)

    def sizes(self, config: DistillConfig | None) -> Network:
        """The same, with those of the config's adapters."""
        key = config.adapter if config and config.adapter.rank else None
        if key not in self._networks:
            self._networks[key] = sizes_of(
                self.description, PERSISTENT, self.text, config if key else None
            )
        return self._networks[key]

    def teacher_bytes(self, config: DistillConfig) -> int:
        base = base_precision(config, self.description.family) if config.adapter.rank else ""
        return teacher_size(self.description.to_json(), config.training.precision, base)

    def activations(self, config: DistillConfig, micro_batch: int) -> dict[str, int]:
        """Phase -> bytes of one pass: the chord of what is traced, which is never below it.

        Each trace takes seconds at first: of a teacher that is shared out, and of blocks that are
        computed again, there are traces of their own.
        """
        resources = plainly(config)
        shared = resources.teacher_zero_stage == 3
        key = (
            config.training.precision, resources.activation_checkpointing, shared, config.adapter,
            config.training.weights,
        )  # fmt: skip
        if key not in self._traces:
            sizes = sorted(
                {1, min(TRACED_IMAGES, config.training.batch_size), config.training.batch_size}
            )
            own = replace(config, resources=resources)
            self._traces[key] = kept_trace(own, self.description, sizes)
        made = 0
        if config.adapter.rank:
            base = base_precision(config, self.description.family)
            made = dequantised_size(self.description.to_json(), base, config.training.precision)
        return {phase: size + made for phase, size in self._traces[key].at(micro_batch).items()}

    def layout(self, config: DistillConfig, machine: Gpus) -> Layout:
        zero = deepspeed_config(3, 1, machine.gpus)["zero_optimization"]
        resources = plainly(config)
        shared = needs_deepspeed(resources, machine.gpus)
        stages = {role: resources.stage_of(role) if shared else 0 for role in TRAINED}
        teacher = resources.teacher_zero_stage if machine.gpus > 1 else 0
        half = [role for role in TRAINED if adam_of(config, role).half_weights]
        if half and teacher == 3:
            half.append(TEACHER)
        return Layout(
            gpus=machine.gpus,
            stages=stages | {TEACHER: teacher},
            bucket=zero["reduce_bucket_size"],
            live=max(zero.get(key, LIVE) for key in LIVE_KEYS),
            offload=resources.offload_optimizer,
            reserve=machine.reserve,
            moments={role: adam_of(config, role).moment_words for role in TRAINED},
            half=frozenset(half),
            teacher=self.teacher_bytes(config),
        )

    def peak(self, config: DistillConfig, machine: Gpus, micro_batch: int = 0) -> Moment:
        """The fullest moment on a GPU, at the config's micro-batch or another."""
        micro_batch = micro_batch or micro_batch_of(config)
        activations = self.activations(config, micro_batch)
        return peak(self.sizes(config), self.layout(config, machine), activations)

    def least_cost(self, config: DistillConfig, machine: Gpus, memory: int) -> int:
        """What a config with a shared teacher costs at least: its passes are no smaller than those
        of the same teacher whole, of which there is a trace in any case.
        """
        whole = replace(config, resources__teacher_zero_stage=0)
        activations, sizes = self.activations, micro_batches(config, machine.gpus)
        layout, network = self.layout(config, machine), self.sizes(config)
        fitting = bisect.bisect_right(
            sizes, memory, key=lambda n: peak(network, layout, activations(whole, n)).total
        )
        return self.sent(config, machine, sizes[fitting - 1])[1] if fitting else sys.maxsize

    def largest(self, config: DistillConfig, machine: Gpus, memory: int = 0) -> int:
        """The largest micro-batch that fits into a GPU, or into ``memory`` bytes; 0 for none."""
        sizes, memory = micro_batches(config, machine.gpus), memory or machine.memory
        fitting = bisect.bisect_right(
            sizes, memory, key=lambda size: self.peak(config, machine, size).total
        )
        return sizes[fitting - 1] if fitting else 0

    def sent(self, config: DistillConfig, machine: Gpus, micro_batch: int) -> tuple[int, int]:
        """(bytes that a GPU sends in an iteration, what all of it costs in such bytes: passes,
        sending, offloading, and arithmetic that is done again).
        """
        plan = plan_of(config, machine.gpus, micro_batch)
        passes, layout = plan.passes_a_rank, self.layout(config, machine)
        sent = sent_bytes(self.sizes(config), layout, passes)
        offloaded = int(PCIE * moved_bytes(self.sizes(config), layout, passes))
        beside = PASS * passes
        if plainly(config).activation_checkpointing:
            again = AGAIN_FLOAT32 if config.training.precision == "float32" else AGAIN
            beside += again * plan.group_size * -(-plan.num_groups // machine.gpus)
        return sent, sent + offloaded + int(beside * WORD * self.network.parameters)

    def host(self, config: DistillConfig, machine: Gpus, micro_batch: int) -> int:
        """Bytes of host memory that a rank takes."""
        passes = plan_of(config, machine.gpus, micro_batch).passes_a_rank
        return host_bytes(self.sizes(config), self.layout(config, machine), passes)

    def host_start(self, config: DistillConfig, machine: Gpus, micro_batch: int) -> int:
        """The same while a rank builds its networks."""
        passes = plan_of(config, machine.gpus, micro_batch).passes_a_rank
        return start_bytes(self.sizes(config), self.layout(config, machine), passes)

    def row(self, stage: str, config: DistillConfig, machine: Gpus) -> StageRow:
        found, largest = self.peak(config, machine), self.largest(config, machine)
        fits = found.total <= machine.memory
        used = micro_batch_of(config) if fits or not largest else largest
        sent, cost = self.sent(config, machine, used)
        host = self.host(config, machine, used)
        return StageRow(stage, config, found, fits, largest, sent, cost, host)

    def rows(self, config: DistillConfig, machine: Gpus) -> list[StageRow]:
        """Every stage."""
        variants = stage_variants(config, machine.gpus)
        return [self.row(name, own, machine) for name, own in variants.items()]

    def checkpoint(self, config: DistillConfig) -> int:
        """Bytes of a checkpoint: without a first moment that the next step replaces unread."""
        stored = {role: len(adam_of(config, role).kinds) for role in TRAINED}
        return checkpoint_bytes(self.sizes(config), stored)


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
