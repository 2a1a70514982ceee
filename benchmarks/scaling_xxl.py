"""EDM2-XXL on 8 to 512 GPUs, modelled, for benchmarks/scaling.py. Nothing here ran on a GPU.

Counted on tensors without data, of the real objective: floating-point operations an image, and what
weights alone move through a GPU's memory in a pass (casts, normalised weights), however few images
it has. Both become seconds by rates that are assumptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling_measure import sizes_of
from benchmarks.scaling_model import (
    Seconds,
    Sizes,
    Stages,
    StatedLink,
    Work,
    collectives,
    iteration,
    sent_bytes,
)
from sid_ray.config.distill_config import DistillConfig
from sid_ray.distributed import deepspeed_role
from sid_ray.planning.choose import choose_resources
from sid_ray.planning.fit import Gpus, Planner, stage_variants
from sid_ray.planning.machine import Machine
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR, GIB, WORD
from sid_ray.planning.spec_networks import spec_network
from sid_ray.planning.trace_memory import FusedAttention, trace_phase, trained_alone
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import network_of

RECIPE = "img512-xxl-sida"
PHASES = (FAKE_SCORE, GENERATOR)
GPUS = (8, 16, 32, 64, 128, 256, 512)
LINKS = (
    StatedLink("InfiniBand, 400 Gb/s a GPU", within=450e9, between=8 * 50e9),
    StatedLink("100 Gb/s a node", within=450e9, between=12.5e9),
)
# Words that a GPU moves for one parameter, operator by operator. Adam: gradient, master and second
# moment read, both written, the root and the quotient written and read. Normalising: the weight
# read for its norm and for the quotient, which is written, copied to the weight and to the master.
# Average: weight and mean read, the mix written, read and written once more.
ADAM_WORDS, NORMALISE_WORDS, AVERAGE_WORDS = 9, 7, 5


@dataclass(frozen=True)
class Rates:
    """What a GPU is assumed to do: ``peak`` operations a second, ``share`` of which is reached, and
    bytes a second of its memory."""

    peak: float = 989e12
    share: float = 0.4
    memory: float = 3.35e12
    gpu_gib: float = 80.0


@dataclass(frozen=True)
class Pass:
    """One pass of a phase: operations an image, bytes moved whatever the number of images."""

    flop: float
    moved: float

    def seconds(self, images: int, rates: Rates) -> float:
        return images * self.flop / (rates.peak * rates.share) + self.moved / rates.memory


class Moved(TorchDispatchMode):
    """Bytes that operators read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, made))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return made


def counted_pass(config: DistillConfig, nets: Sequence[Any], phase: str) -> Pass:
    """Counts a phase at one and two images: what is the same at both is the weights' own."""
    description, moved, flop = network_of(config, teacher_of(config)), [], 0
    with trained_alone(nets[1] if phase == FAKE_SCORE else nets[2]):
        for images in (1, 2):
            with Moved() as traffic, FusedAttention():
                trace_phase(config, description, nets, phase, images)
            moved.append(traffic.bytes)
        with FlopCounterMode(display=False) as counter, FusedAttention():
            trace_phase(config, description, nets, phase, 1)
        flop = counter.get_total_flops()
    return Pass(flop, 2 * moved[0] - moved[1])


@dataclass(frozen=True)
class Row:
    """One world size at one stage. ``images_s`` images a second, ``sent`` bytes of a GPU."""

    gpus: int
    stage: str
    micro_batch: int
    passes: int
    peak: int
    fits: bool
    seconds: Seconds
    sent: int
    images_s: float


class Model:
    """XXL's run at any world size and stage."""

    def __init__(self, rates: Rates, overlap: float = 0.0):
        self.rates, self.overlap = rates, overlap
        self.config = recipe(RECIPE)
        description = teacher_of(self.config)
        self.planner = Planner(description)
        nets = [
            spec_network(self.config, network_of(self.config, description), "meta")
            for _ in range(3)
        ]
        self.passes = {phase: counted_pass(self.config, nets, phase) for phase in PHASES}
        self.sizes: Sizes = sizes_of(nets[2], constrained=self.config.training.normalize_weights)

    @property
    def flop(self) -> float:
        """Operations an image."""
        return sum(one.flop for one in self.passes.values())

    def work(self, images: int) -> Work:
        each = WORD * self.sizes.parameters / self.rates.memory
        return Work(
            self.passes[FAKE_SCORE].seconds(images, self.rates),
            self.passes[GENERATOR].seconds(images, self.rates),
            adam=2 * ADAM_WORDS * each,
            normalise=2 * NORMALISE_WORDS * each,
            average=AVERAGE_WORDS * each,
        )

    def machine(self, gpus: int) -> Gpus:
        return Gpus.of(gpus, self.rates.gpu_gib)

    def chosen(self, gpus: int) -> str:
        """The stage that a run takes where nobody names one."""
        machine = Machine.alike(-(-gpus // 8), min(gpus, 8), self.rates.gpu_gib)
        own = choose_resources(self.config, self.planner.description, machine).config.chosen
        return f"{own.zero_stage}{', teacher' * (own.teacher_zero_stage == 3)}"

    def row(self, gpus: int, stage: str, link: StatedLink, bucket: int = 0) -> Row:
        """At the largest micro-batch that fits; at the recipe's where none does.

        ``bucket`` is elements, 0 for the engine's own; the micro-batch is that of the engine's.
        """
        config, machine = stage_variants(self.config, gpus)[stage], self.machine(gpus)
        largest = self.planner.largest(config, machine)
        micro = largest or self.config.training.group_size
        plan = replace(config.group_plan(1), world_size=gpus, micro_batch=micro)
        number, _, teacher = stage.partition(", ")
        stages = Stages(int(number), 3 if teacher else 0, bucket or deepspeed_role.BUCKET)
        rounds = -(-plan.num_groups // gpus)
        # The last pass of a rank may hold fewer groups: seconds of a mean one.
        images = rounds * plan.group_size / plan.passes_a_rank
        found = iteration(self.work(images), plan, stages, self.sizes, link, overlap=self.overlap)
        sent = sent_bytes(collectives(stages, self.sizes, plan.passes_a_rank), gpus)
        peak = self.planner.peak(config, machine, micro).total
        return Row(
            gpus, stage, micro, plan.passes_a_rank, peak, bool(largest), found, sent,
            plan.batch_size / found.total,
        )  # fmt: skip

    def memory(self, gpus: int, stage: str) -> float:
        """GiB at the recipe's micro-batch."""
        config = stage_variants(self.config, gpus)[stage]
        return self.planner.peak(config, self.machine(gpus)).total / GIB
