"""A run of a few iterations without Ray: built as a worker builds it, in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sid_ray.actors.build import TrainedRole, WorkerSettings, build_networks
from sid_ray.config.distill_config import DistillConfig, replace, with_plain_resources
from sid_ray.denoisers.registry import family_of
from sid_ray.distributed.fragments import MASTER, whole_state
from sid_ray.distributed.roles import Trainee
from sid_ray.objectives.spec import objective_specs
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import RECIPES, recipe
from sid_ray.training.assemble import Data, data_of, find_start, objective_of
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step

LATE = 1 << 30  # images seen: every warm-up is over
SPREAD = 0.01  # relative change of the trained weights, as in the midst of a run


@dataclass
class ShortRun:
    """The networks of a run, and its next iteration."""

    trainee: Trainee
    roles: dict[str, TrainedRole]
    iterate: Callable[[], Sums]

    def weights(self) -> dict[str, Tensor]:
        """ROLE NAME/KIND -> weights and moments on the CPU. A collective."""
        found: dict[str, Tensor] = {}
        for name, role in self.roles.items():
            state = role.state()
            found |= {f"{name} {key}": value.cpu() for key, value in state.tensors.items()}
        whole = whole_state(self.trainee.generator_ema)
        return found | {f"average {name}/{MASTER}": value.cpu() for name, value in whole}


def shipped_recipes() -> dict[str, str]:
    """Objective -> the first recipe with it whose teacher and data ship."""
    found: dict[str, str] = {}
    for name in RECIPES:
        config = recipe(name)
        if config.teacher.source.startswith("builtin:"):
            found.setdefault(config.objective.name, name)
    known = [spec.name for spec in objective_specs()]
    return {name: found[name] for name in known if name in found}


def reads_text(name: str) -> bool:
    """Whether a recipe's teacher does."""
    return family_of(teacher_of(recipe(name)).family).reads_text


def short_config(name: str, groups: int, group_size: int) -> DistillConfig:
    """A recipe with small batches of one worker, and dropout where its network has some."""
    config = with_plain_resources(recipe(name))
    network = teacher_of(config)
    family = family_of(network.family)
    dropped = not family.reads_text and family.with_dropout(network.network, 0) is not None
    return replace(
        config,
        teacher__dropout=0.1 if dropped else config.teacher.dropout,
        training__batch_size=groups * group_size,
        training__group_size=group_size,
        resources__num_workers=1,
        resources__micro_batch=0,
        evaluation__every=0,
        evaluation__final_report=False,
    )


def begin_run(
    config: DistillConfig,
    device: torch.device,
    world_size: int = 1,
    rank: int = 0,
    local_folder: str = "",
) -> ShortRun:
    """All that a worker does before its first iteration, but for a state to go on from.

    Where ``world_size`` is more than one, the process group is there. Compiled code is kept in
    ``local_folder``. A collective.
    """
    start = find_start(config)
    settings = WorkerSettings(
        config=config.to_json(),
        run_folder="",
        teacher_folder=str(start.teacher),
        initial_generator="",
        local_folder=local_folder,
        run_key="",
        own_scaling=False,
        tracker=None,
        evaluator=None,
        components=start.components,
    )
    built = build_networks(config, settings, world_size, device)
    data = data_of(config, start.description, start.components, device, world_size, rank)
    return run_of(config, built.trainee, built.roles, data, device, world_size, rank)


def run_of(
    config: DistillConfig,
    trainee: Trainee,
    roles: dict[str, TrainedRole],
    data: Data,
    device: torch.device,
    world_size: int,
    rank: int,
) -> ShortRun:
    """The iterations of networks that are there."""
    objective = objective_of(config, data.null_text)
    training, plan = config.training, config.group_plan(world_size)
    draws = draws_of(data.source, plan, training.seed, device, objective.draw_spec)
    chosen = StepSettings(plan, rank, training.ema_half_life, training.ema_rampup)
    trainee.images_seen = LATE

    def iterate() -> Sums:
        sums = Sums()
        step(trainee, objective, chosen, draws, sums)
        return sums

    return ShortRun(trainee, roles, iterate)


def spread_out(run: ShortRun) -> None:
    """Moves fake score and generator a little apart from the teacher, alike on every device.

    At the very start the two scores are alike, and the generator's gradient is rounding. A
    collective.
    """
    random = torch.Generator().manual_seed(0)
    for role in run.roles.values():
        state = role.state()
        for name in sorted(state.tensors):
            if name.endswith("/master"):
                value = state.tensors[name]
                noise = torch.randn(value.shape, generator=random).to(value.device)
                value.mul_(1 + SPREAD * noise)
        role.load_state(state)
