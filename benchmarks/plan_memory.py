"""What `sid-ray plan` predicts beside what is there, on a CPU: two tables.

    python -m benchmarks.plan_memory [--worlds 1 2] [--stages 0 1 2 3] [--skip state|activations]

state: one role with its average, of the digits teacher's network, as DeepSpeed holds it, or plain
torch on one rank; with a first moment (beta1 0.9) on one rank and at stage 2 too; and an adapter of
that network, whose base is not counted. Counted are the bytes of all tensors that exist after three
iterations, and of those that operators make during a pass and an update. Buckets are 50,000
elements here, so that they hide nothing. The last row has stage 3 leave all elements gathered in
place of 100,000.

activations: a pass of each phase. Predicted on the meta device; measured is the peak of torch's own
CPU allocator, as its profiler records every allocation, which has the kernels' temporaries too.
"""

from __future__ import annotations

import argparse
import copy
import gc
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from sid_ray.config.distill_config import DistillConfig, replace, with_plain_resources
from sid_ray.denoisers.adapters import with_adapter
from sid_ray.denoisers.convolution import weights_ready
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed import deepspeed_role
from sid_ray.distributed.deepspeed_role import DeepSpeedRole, deepspeed_config
from sid_ray.distributed.fragments import ShardedAverage
from sid_ray.distributed.roles import AdamSettings, TorchRole
from sid_ray.planning.fit import LIVE, LIVE_KEYS
from sid_ray.planning.memory import (
    FAKE_SCORE,
    GENERATOR,
    TEACHER,
    TRAINED,
    Layout,
    pass_parts,
    reduce_parts,
    role_state,
    update_parts,
)
from sid_ray.planning.network_sizes import sizes_of
from sid_ray.planning.spec_networks import spec_network, spec_networks
from sid_ray.planning.trace_memory import (
    LiveBytes,
    trace,
    trace_phase,
    trained_alone,
)
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.adapter_settings import run_adapter
from sid_ray.training.assemble import network_of
from sid_ray.types import Condition
from sid_ray.weights.description import ModelDescription
from tests.support.networks import TINY_EDM2
from tests.support.trajectories import spawn

BUCKET, PASSES, IMAGES = 50_000, 3, 2
FEW = 2 * BUCKET  # elements that stage 3 leaves gathered: as many buckets as in a run
MOMENTUM = {0.0: "", 0.9: ", first moment"}  # beta1
RANK = 8  # of adapters
EDM2 = ModelDescription("edm2", TINY_EDM2.to_json())
ACTIVATIONS = {
    "digits-sid": ({}, (1, 16, 32)),
    "digits-sida": ({}, (1, 16, 32)),
    "digits-vsd": ({}, (32,)),
    "emoji-lsg": ({}, (1, 16)),
    "digits-sid, bfloat16": ({"training__precision": "bfloat16"}, (16,)),
    "digits-sida, EDM2": ({"objective__logvar": True, "teacher__dropout": 0.1}, (1, 16)),
    "digits-sida, EDM2, bfloat16": (
        {"objective__logvar": True, "training__precision": "bfloat16"},
        (16,),
    ),
    "emoji-lsg, adapters": ({"adapter__rank": RANK}, (1, 16)),
    "emoji-lsg, adapters, bfloat16": (
        {"adapter__rank": RANK, "training__precision": "bfloat16"}, (16,)),
    "emoji-lsg, adapter of the fake score": (
        {"adapter__rank": RANK, "adapter__roles": "fake"}, (16,)),
    "digits-sida, EDM2, adapters": (
        {"adapter__rank": RANK, "objective__logvar": True, "teacher__dropout": 0.1}, (16,)),
}  # fmt: skip


def everything() -> list[Tensor]:
    """All tensors that Python knows; those on the meta device have no memory."""
    found = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    return [tensor for tensor in found if not tensor.is_meta]


def held(tensors: Iterable[Tensor], others: set[int]) -> int:
    """Bytes of their storages, less those of others."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(size for key, size in storages.items() if key not in others)


def one_pass(network, images: int, labels: int) -> Tensor:
    """A loss of one evaluation of the digits network."""
    x = torch.ones(images, 1, 8, 8)
    level = EDMSchedule().level(torch.ones(images))
    return (network(x, level, Condition(torch.eye(labels)[:images])).x0 ** 2).sum()


def activations_of(network) -> int:
    """Peak bytes of that pass in plain torch, weights' gradients left out."""
    network = copy.deepcopy(network)
    with trained_alone(network), LiveBytes(everything()) as live:
        one_pass(network, IMAGES, 10).backward()
    return live.peak


def iteration(role: TorchRole | DeepSpeedRole, others: set[int] | None = None) -> dict[str, int]:
    """Most bytes during the passes, and during the update, of one iteration.

    Looks at all tensors only where it is told which are not the role's.
    """
    role.module.requires_grad_(True)
    found = {"pass": 0, "update": 0}
    for name in ("pass",) * PASSES + ("update",):
        there = [] if others is None else everything()
        before = 0 if others is None else held(there, others)
        with LiveBytes(there) as live:
            if name == "pass":
                role.backward(one_pass(role.network, IMAGES, 10))
            else:
                role.update()
        found[name] = max(found[name], before + live.peak)
        del there
    role.module.requires_grad_(False)
    return found


def measure(rank: int, world_size: int, folder: str, stages: list[int], live: int) -> None:
    """Every stage in one start of the processes; rank 0 writes (words, predicted, measured)."""
    deepspeed_role.BUCKET = BUCKET
    plain = deepspeed_config

    def limited(*given: int) -> dict:
        found = plain(*given)
        # As in a run, buckets apart: no small weight is too many to be left gathered.
        found["zero_optimization"]["stage3_model_persistence_threshold"] = 50_000_000
        found["zero_optimization"] |= dict.fromkeys(LIVE_KEYS, live)
        return found

    deepspeed_role.deepspeed_config = limited
    description = teacher_of(recipe("digits-sid"))
    rows: list = []
    with_momentum = [stage for stage in stages if stage == 2 or world_size == 1]
    unsharded = [stage for stage in stages if stage < 3]
    cases = [(stage, 0.0, 0) for stage in stages] + [(stage, 0.9, 0) for stage in with_momentum]
    for stage, beta1, rank_of_adapter in cases + [(stage, 0.0, RANK) for stage in unsharded]:
        gc.collect()
        config = replace(recipe("digits-sid"), adapter__rank=rank_of_adapter)
        network = sizes_of(description, deepspeed_role.PERSISTENT, 0, config)
        base = spec_network(config, description, "cpu") if rank_of_adapter else None
        others = {tensor.untyped_storage()._cdata for tensor in everything()}
        module = role_of(config, description, base).requires_grad_(True)
        needed = activations_of(module)
        adam = AdamSettings(1e-4, beta1, 0.999, 1e-8)
        role: TorchRole | DeepSpeedRole = (
            TorchRole(module, adam)
            if world_size == 1
            else DeepSpeedRole(module, adam, stage, PASSES)
        )
        role.module.requires_grad_(False)
        average = ShardedAverage(role)
        iteration(role)
        iteration(role)
        gc.collect()
        found = {"kept": held(everything(), others)} | iteration(role, others)
        stages_of = {TEACHER: 0, FAKE_SCORE: 0, GENERATOR: stage}
        held_moments = dict.fromkeys(TRAINED, len(adam.moments))
        layout = Layout(world_size, stages_of, BUCKET, live, moments=held_moments)
        words = f"{'none' if world_size == 1 else stage}{MOMENTUM[beta1]}"
        words += ", adapter" * (base is not None)
        rows.append((words, predicted(network, layout, needed), found))
        del role, module, average, base
    if rank == 0:
        torch.save(rows, f"{folder}/rows.pt")


def role_of(config: DistillConfig, description: ModelDescription, base: nn.Module | None):
    """A role's network: whole, or an adapter over a base, with random numbers."""
    if base is None:
        return spec_network(config, description, "cpu")
    adapter = run_adapter(config, description.family)
    assert adapter is not None
    return with_adapter(base, adapter)


def predicted(network, layout: Layout, activations: int) -> dict[str, int]:
    """Bytes of the generator's role alone."""
    kept = sum(role_state(GENERATOR, network, layout).values())
    more = [pass_parts(GENERATOR, network, layout, activations)]
    more += [part(GENERATOR, network, layout) for part in (reduce_parts, update_parts)]
    passing, reducing, updating = (sum(parts.values()) for parts in more)
    return {"kept": kept, "pass": kept + max(passing, reducing), "update": kept + updating}


def show_state(worlds: list[int], stages: list[int]) -> None:
    print("| ranks | stage | kept, KiB | pass, KiB | update, KiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for world_size in worlds:
            of_world = stages if world_size > 1 else [0]
            for live, chosen in ((FEW, of_world), (LIVE, [3])):
                if live == LIVE and (world_size == 1 or 3 not in stages):
                    continue
                spawn(measure, world_size, folder, chosen, live)
                for words, expected, found in torch.load(Path(folder) / "rows.pt"):
                    words += ", all left gathered" if live == LIVE else ""
                    cells = [cell(expected[name], found[name]) for name in found]
                    print(f"| {world_size} | {words} | {' | '.join(cells)} |", flush=True)


def cell(expected: int, found: int) -> str:
    return f"{expected / 1024:,.0f} / {found / 1024:,.0f} = {expected / found:.3f}"


def allocator_peak(run) -> int:
    """Most bytes that torch's CPU allocator had given out at once while ``run`` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measured(config: DistillConfig, description: ModelDescription, phase: str, images: int) -> int:
    """Peak bytes of a pass on real tensors."""
    description = network_of(config, description)
    nets = spec_networks(config, description, "cpu")
    trained, other = nets[1:] if phase == FAKE_SCORE else nets[:0:-1]

    def run(images: int) -> None:
        with weights_ready(other):
            trace_phase(config, description, nets, phase, images)

    with trained_alone(trained):
        run(1)  # caches of schedules are filled
        return allocator_peak(lambda: run(images))


def show_activations() -> None:
    print("\n| run | images | fake-score pass, KiB | generator pass, KiB |\n|---|---|---|---|")
    for name, (changes, sizes) in ACTIVATIONS.items():
        config = replace(with_plain_resources(recipe(name.split(",")[0])), **changes)
        description = EDM2 if "EDM2" in name else teacher_of(config)
        traced = trace(config, description, sizes)
        for images in sizes:
            expected = traced.at(images)
            cells = [
                cell(expected[phase], measured(config, description, phase, images))
                for phase in (FAKE_SCORE, GENERATOR)
            ]
            print(f"| {name} | {images} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--skip", choices=("state", "activations"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("predicted / measured = ratio\n")
    if given.skip != "state":
        show_state(given.worlds, given.stages)
    if given.skip != "activations":
        show_activations()


if __name__ == "__main__":
    main()
