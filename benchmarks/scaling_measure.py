"""Step time and memory of real workers over gloo, for benchmarks/scaling.py: 1 to 4 processes.

Measured of each iteration: wall seconds; of what a rank computes, by section, seconds of its thread
on a core, which other programs on the machine do not change; seconds of waiting for collectives.
Then one iteration in which all tensors and all collectives are counted and nothing is timed.
"""

from __future__ import annotations

import gc
import math
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.plan_memory import everything, held
from benchmarks.scaling_model import GATHER, REDUCE, ROUNDS, SCATTER, WORD, Sizes
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.edm2 import EDM2Network
from sid_ray.denoisers.registry import family_of
from sid_ray.distributed import deepspeed_role
from sid_ray.distributed.fragments import ShardedAverage
from sid_ray.distributed.roles import TorchRole, Trainee, UpdateRules
from sid_ray.planning.spec_networks import spec_network
from sid_ray.planning.trace_memory import LiveBytes
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import adam_of, network_of, objective_of
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.weights.description import ModelDescription
from tests.support.trajectories import LabelledImages

BUCKET = 1_000_000  # several of them make a network, as 50,000,000 make several of an XXL
OWN_BUCKET = deepspeed_role.BUCKET
SEEN = 1 << 30  # images: every warm-up is over, all terms of a loss count
SHAPE = (4, 8, 8)
NETWORK = EDM2Network(
    img_resolution=SHAPE[1],
    img_channels=SHAPE[0],
    label_dim=10,
    model_channels=64,
    channel_mult=(1, 2),
    num_blocks=3,
    attn_resolutions=(4,),
    dropout=0.1,
)
DESCRIPTION = ModelDescription("edm2", NETWORK.to_json())
SPIN_S = 0.4
PLAIN = "plain"  # torch's own, one process: what a run on one worker could be
OPERATORS = {"allreduce_": REDUCE, "_allgather_base_": GATHER, "_reduce_scatter_base_": SCATTER}


def config_of(stage: int = 0) -> DistillConfig:
    """XXL's SiDA with a small network and batch. 6 groups of 2: 4 workers do not divide them."""
    return replace(
        recipe("img512-xxl-sida"),
        training__batch_size=12,
        training__precision="float32",
        resources__zero_stage=stage,
    )


def sizes_of(module: nn.Module, constrained: bool) -> Sizes:
    """A network's tensors as stage 3 sees them."""
    counts = [parameter.numel() for parameter in module.parameters()]
    large = tuple(count for count in counts if count > deepspeed_role.PERSISTENT)
    small = tuple(count for count in counts if count <= deepspeed_role.PERSISTENT)
    return Sizes(large, small, constrained)


class Clock:
    """Seconds on a core by section, and wall seconds of waiting for collectives."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.waited = 0.0
        self.section, self.since = "other", time.thread_time()

    def enter(self, section: str) -> str:
        """Ends a section, starts another; the one that ended."""
        now = time.thread_time()
        self.spent[self.section] += now - self.since
        before, self.section, self.since = self.section, section, now
        return before

    def within(self, section: str, call: Callable[..., Any], after: str = "") -> Callable[..., Any]:
        """A call that counts as a section; then ``after``, or what was before."""

        def timed(*arguments: Any) -> Any:
            before = self.enter(section)
            try:
                return call(*arguments)
            finally:
                self.enter(after or before)

        return timed

    def watch(self, trainee: Trainee) -> None:
        """Cuts an iteration into sections."""
        for name, role in (("fake", trainee.fake_score), ("generator", trainee.generator)):
            watched: Any = role
            watched.prepare = self.within(f"{name} pass", role.prepare, f"{name} pass")
            watched.update = self.within("adam", role.update, "other")
            if hasattr(role, "_constrain"):
                watched._constrain = self.within("normalise", role._constrain)
        generator: Any = trainee.generator
        generator.average_into = self.within("average", generator.average_into)

    def watch_collectives(self) -> None:
        """Counts seconds of waiting for a collective, or for the others to come to it."""
        wait = torch._C._distributed_c10d.Work.wait

        def timed(work: Any, *arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return wait(work, *arguments)
            finally:
                self.waited += time.perf_counter() - began

        torch._C._distributed_c10d.Work.wait = timed


class Collectives(TorchDispatchMode):
    """Counts what is handed to collectives: bytes that a ring sends for them, and how many."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("c10d.").partition(".")[0]
        if name in OPERATORS and str(func).startswith("c10d."):
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.elements[OPERATORS[name]] += max(tensor.numel() for tensor in tensors)
            self.calls[OPERATORS[name]] += 1
        return func(*args, **(kwargs or {}))

    def sent(self, workers: int) -> int:
        elements = sum(ROUNDS[kind] * count for kind, count in self.elements.items())
        return WORD * elements * (workers - 1) // workers


def build(config: DistillConfig, stage: int | str, workers: int) -> Trainee:
    """The three roles on this rank; PLAIN for torch's own."""
    torch.manual_seed(0)
    rules = UpdateRules(family_of("edm2").constrain)
    passes = config.group_plan(workers).passes_a_rank

    def network() -> nn.Module:
        module = spec_network(config, network_of(config, DESCRIPTION), "cpu")
        for parameter in module.parameters():
            if parameter.dim() == 0:
                parameter.data.fill_(0.5)  # with gains of zero no gradient reaches the body
        return module

    def role(name: str) -> Any:
        module, adam = network().requires_grad_(True), adam_of(config, name)
        if stage == PLAIN:
            return TorchRole(module, adam, rules)
        built = deepspeed_role.DeepSpeedRole(module, adam, int(stage), passes, rules)
        built.module.requires_grad_(False)
        return built

    fake_score, generator = role("fake_score"), role("generator")
    average = network() if stage == PLAIN else ShardedAverage(generator)
    return Trainee(network(), fake_score, generator, average, SEEN)


def measure(
    rank: int, workers: int, folder: str, stages: Sequence[int | str], iterations: int
) -> None:
    """Every stage in one start of the processes, and collectives by themselves; rank 0 writes."""
    deepspeed_role.BUCKET = BUCKET
    clock, found = Clock(), {}
    clock.watch_collectives()
    for stage in stages:
        gc.collect()
        others = {tensor.untyped_storage()._cdata for tensor in everything()}
        config = config_of(0 if stage == PLAIN else int(stage))
        trainee, plan = build(config, stage, workers), config.group_plan(workers)
        objective = objective_of(config, None)
        draws = draws_of(LabelledImages(SHAPE), plan, 0, torch.device("cpu"), objective.draw_spec)
        settings = StepSettings(plan, rank, config.training.ema_half_life, 0.5)

        iterate = partial(step, trainee, objective, settings, draws, Sums())
        iterate()
        clock.watch(trainee)
        cores = available()
        found[stage] = timed(iterate, clock, iterations) | counted(iterate, others, workers)
        found[stage]["cores"] = (cores + available()) / 2
        del iterate, trainee
    collectives = alone(workers) if workers > 1 else {}
    if rank == 0:
        torch.save((found, collectives), Path(folder) / "found.pt")


def timed(iterate: Callable[[], None], clock: Clock, iterations: int) -> dict[str, Any]:
    """Medians over iterations: wall seconds of a ``step`` and of ``waiting``, and every section's.

    ``fastest`` is the shortest step.
    """
    rows: list[dict[str, float]] = []
    for _ in range(iterations):
        dist.barrier()
        clock.enter("other")
        clock.spent.clear()
        clock.waited = 0.0
        began = time.perf_counter()
        iterate()
        step_s = time.perf_counter() - began
        clock.enter("other")
        rows.append(dict(clock.spent) | {"waiting": clock.waited, "step": step_s})
    names = {name for row in rows for name in row}
    found = {name: statistics.median(row.get(name, 0.0) for row in rows) for name in names}
    return found | {"fastest": min(row["step"] for row in rows)}


def available() -> float:
    """Cores that the workers get when all of them compute at once, beside whatever else runs."""
    dist.barrier()
    began, computed = time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < SPIN_S:
        pass
    got = torch.tensor((time.thread_time() - computed) / (time.perf_counter() - began))
    dist.all_reduce(got)
    return float(got)


def counted(iterate: Callable[[], None], others: set[int], workers: int) -> dict[str, Any]:
    """Bytes of tensors at their most, bytes sent, and of the process (``rss``, its peak so far)."""
    gc.collect()
    there = everything()
    before = held(there, others)
    with LiveBytes(there) as live, Collectives() as seen:
        iterate()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = before + live.peak
    return {"peak": peak, "sent": seen.sent(workers), "calls": dict(seen.calls), "rss": rss}


def alone(workers: int) -> dict[str, list[tuple[int, float]]]:
    """Seconds of each collective by itself: kind -> (elements, median seconds) by size."""
    whole = sum(p.numel() for p in spec_network(config_of(), DESCRIPTION, "meta").parameters())
    found: dict[str, list[tuple[int, float]]] = {kind: [] for kind in ROUNDS}
    for size in (1 << 14, 1 << 17, 1 << 19, BUCKET, whole):
        part = math.ceil(size / workers)
        full, own = torch.ones(part * workers), torch.ones(part)
        calls: dict[str, Callable[[], Any]] = {
            REDUCE: lambda full=full: dist.all_reduce(full),
            GATHER: lambda full=full, own=own: dist.all_gather_into_tensor(full, own),
            SCATTER: lambda full=full, own=own: dist.reduce_scatter_tensor(own, full),
        }
        repeats = 40 if size < BUCKET else 10
        for kind, call in calls.items():
            found[kind].append((size, median_seconds(call, repeats)))
    return found


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    call()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)
