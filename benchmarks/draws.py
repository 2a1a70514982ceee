"""Random draws of a step: seconds on one core, and how long steps wait for them.

    python -m benchmarks.draws [--rounds 7] [--skip-steps]

1. One phase of EDM2-XXL's batch (2048 images of 4x64x64) for 1 worker and for one of 8: as it was
   (each group by itself, then joined) and as it is (into one tensor), in turn.
2. Iterations of SiD on small networks at that image size, once with draws made when they are asked
   for and once ahead, in turn: seconds of an iteration, and how many of them a step waited.
3. In how many of a normal draw's numbers the last bit depends on who computes log, sine and cosine:
   why a counter-based generator on the GPU cannot give the CPU's numbers.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from sid_ray.data.source import DataSource
from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network
from sid_ray.diffusion.rng import FAKE_SCORE, draw_group
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed.adam import AdamSettings
from sid_ray.distributed.roles import TorchRole, Trainee
from sid_ray.groups import GroupPlan
from sid_ray.objectives.sid import SiD
from sid_ray.recipes.registry import recipe
from sid_ray.training.allocator import keep_freed_memory
from sid_ray.training.draws import Drawn, Draws, DrawUnit, Maker, draws_of
from sid_ray.training.draws_ahead import Coming, DrawsAhead, HostLane
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.types import Draw, Pick

SHAPE, RECIPE = (4, 64, 64), "img512-xxl-sida"


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    work()
    return clock() - began


def joined_groups(source: DataSource, plan: GroupPlan, groups: tuple[int, ...]) -> Drawn:
    """As it was made: a tensor a group, then one of all."""
    found = [draw_group(0, FAKE_SCORE, 0, g, plan.group_size, source.shape) for g in groups]
    fields = zip(*(draw[:4] for draw, _ in found), strict=True)
    draw = Draw(*(torch.cat(parts) for parts in fields))
    return Drawn(draw, source.batch(Pick(torch.cat([data for _, data in found]))))


def print_seconds(rounds: int) -> None:
    training = recipe(RECIPE).training
    source = DataSource(SHAPE, 1000)
    for workers in (1, 8):
        plan = GroupPlan(training.batch_size, training.group_size, 128, workers)
        packs = [micro_step.groups for micro_step in plan.micro_steps(0)]
        make = Maker(source, plan, 0)
        rows: list[tuple[float, float]] = []
        for _ in range(rounds):

            def as_it_was(plan: GroupPlan = plan, packs: list[Any] = packs) -> None:
                for groups in packs:
                    joined_groups(source, plan, groups)

            def as_it_is(make: Maker = make, packs: list[Any] = packs) -> None:
                for groups in packs:
                    make(DrawUnit(FAKE_SCORE, 0, groups))

            cpu = time.process_time  # other work on the machine lengthens it less
            rows.append((seconds(as_it_was, cpu), seconds(as_it_is, cpu)))
        before, after = (min(column) for column in zip(*rows, strict=True))
        count = training.batch_size // workers
        print(f"| {workers} | {count} | {before:.2f} | {after:.2f} |")


def print_waiting(rounds: int) -> None:
    network = EDM2Network(
        img_resolution=64,
        img_channels=4,
        label_dim=1000,
        model_channels=16,
        channel_mult=(1, 1),
        num_blocks=1,
        attn_resolutions=(),
        channels_per_head=16,
    )
    plan, objective = GroupPlan(64, 16, 16, 1), SiD(EDMSchedule())
    source = DataSource(SHAPE, 1000)
    adam = AdamSettings(1e-4, 0.0, 0.999, 1e-8)

    def trainee() -> Trainee:
        torch.manual_seed(0)
        net = EDM2Denoiser(network).requires_grad_(False)
        roles = (TorchRole(copy.deepcopy(net), adam) for _ in range(2))
        return Trainee(net, *roles, copy.deepcopy(net))

    make = Maker(source, plan, 0, objective.draw_spec)
    ahead = DrawsAhead(make, Coming(plan, 0, objective.trains_generator), HostLane())
    waited = {"asked for": 0.0, "ahead": 0.0}
    plain = draws_of(source, plan, 0, torch.device("cpu"), objective.draw_spec)

    def timed(*question: object) -> object:
        began = time.perf_counter()
        found = plain(*question)  # type: ignore[arg-type]
        waited["asked for"] += time.perf_counter() - began
        return found

    sides: dict[str, tuple[Trainee, Draws]] = {
        "asked for": (trainee(), timed),  # type: ignore[dict-item]
        "ahead": (trainee(), ahead),
    }
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):  # the first is the one that has nothing ahead of it
        for name, (own, draws) in sides.items():
            before = ahead.waited_s if name == "ahead" else waited[name]
            spent = seconds(
                lambda own=own, draws=draws: step(
                    own, objective, StepSettings(plan, 0, 100, 0.05), draws, Sums()
                )
            )
            after = ahead.waited_s if name == "ahead" else waited[name]
            rows[name].append((spent, after - before))
        print(f"round {round_}: " + ", ".join(f"{n} {rows[n][-1]}" for n in rows), flush=True)
    ahead.close()
    weights = [own.generator.module.state_dict() for own, _ in sides.values()]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name, found in rows.items():
        spent = statistics.median(s for s, _ in found[1:])
        share = sum(w for _, w in found[1:]) / sum(s for s, _ in found[1:])
        print(f"| {name} | {spent:.3f} | {100 * share:.2f} % | {found[0][1]:.3f} |")


def print_last_bits(count: int = 1 << 20) -> None:
    """Box-Muller in float32 as torch's vectors compute it, and rounded from float64."""
    uniform = torch.rand(2, count, generator=torch.Generator().manual_seed(0))

    def normal(u: torch.Tensor) -> torch.Tensor:
        radius = (-2 * (1 - u[0]).log()).sqrt()
        return radius * (2 * torch.pi * u[1]).cos()

    differ = (normal(uniform) != normal(uniform.double()).float()).double().mean()
    print(f"last bits differ in {100 * float(differ):.0f} % of {count:,} numbers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-steps", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| workers | images of one | CPU s, a phase: before | now |\n|---:|---:|---:|---:|")
    print_seconds(options.rounds)
    print_last_bits()
    if not options.skip_steps:
        print_waiting(options.rounds)


if __name__ == "__main__":
    main()
