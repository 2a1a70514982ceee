"""One iteration of score identity distillation: the fake-score phase, then the generator phase.

Reads like the algorithm; knows neither Ray nor DeepSpeed. What a role is (plain torch, ZeRO of any
stage) is behind ``Role``; which samples this rank computes is in its ``GroupPlan``; every random
number comes from (seed, stream, images_seen, group).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sid_ray.denoisers.compiled import begin_pass
from sid_ray.denoisers.convolution import weights_ready
from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR
from sid_ray.distributed.ema import ema_beta
from sid_ray.distributed.roles import Role, Trainee
from sid_ray.groups import GroupPlan, MicroStep
from sid_ray.training.draws import Draws
from sid_ray.types import (
    Batch,
    Denoiser,
    Draw,
    GroupSums,
    Loss,
    Networks,
    Objective,
    Scope,
    SumsOf,
)


@dataclass
class Sums:
    """Metrics summed over samples, and how many samples; added up until someone reports.

    They stay on the device that has them: nothing waits for them before a report.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor], samples: int) -> None:
        """Adds sums over so many samples, all at once."""
        names = list(metrics)
        new = [metrics[name] for name in names]
        old = [self.values.get(name) for name in names]
        begun = [torch.zeros_like(n) if o is None else o for o, n in zip(old, new, strict=True)]
        if names:
            self.values |= zip(names, torch._foreach_add(begun, new), strict=True)
        self.counts.update(dict.fromkeys(names, samples))


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know beside the roles."""

    plan: GroupPlan
    rank: int
    ema_half_life: float
    ema_rampup: float
    before_writing: Callable[[], None] = lambda: None
    """Called before anything of the state is overwritten: copies of it may be on their way."""


@contextmanager
def trainable(module: nn.Module) -> Iterator[None]:
    """Parameters with gradients inside, frozen outside: who is trained shows in one place."""
    module.requires_grad_(True)
    try:
        yield
    finally:
        module.requires_grad_(False)


def poison(loss: Tensor) -> Tensor:
    """A loss that is not finite gets gradients that are not: then every rank skips the update."""
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan).to(loss.dtype)


@dataclass(frozen=True)
class Phase:
    """One of the two losses of an iteration, and whose weights it changes."""

    role: Role
    stream: int
    nets: Networks
    loss: Callable[[Networks, Batch, Draw, Scope], Loss]
    sums: SumsOf | None  # None where the loss couples no samples

    @property
    def frozen(self) -> Denoiser:
        """The other trained network, which this loss leaves as it is."""
        nets = self.nets
        return nets.generator if nets.fake_score is self.role.network else nets.fake_score


def run_phase(
    phase: Phase, images_seen: int, settings: StepSettings, draws: Draws, sums: Sums
) -> None:
    """Accumulates one loss over this rank's micro-steps, then updates one role."""
    plan, role = settings.plan, phase.role
    scope = Scope(images_seen, plan.group_size)
    micro_steps = list(plan.micro_steps(settings.rank))
    # A single pass makes them ready as it goes, and lets go of each.
    ready = weights_ready(phase.frozen) if len(micro_steps) > 1 else nullcontext()
    with trainable(role.module), ready:
        for micro_step in micro_steps:
            if micro_step.opens_group:
                if role.prepares:
                    settings.before_writing()
                role.prepare()
            if phase.sums is not None and plan.passes_a_group > 1 and micro_step.opens_group:
                whole = sums_of_group(phase, phase.sums, images_seen, plan, micro_step, draws)
                scope = replace(scope, sums=whole)
            begin_pass()
            draw, batch = draws(phase.stream, images_seen, micro_step)
            loss = phase.loss(phase.nets, batch, draw, scope)
            role.backward(poison(loss.total) * (micro_step.weight / plan.batch_size))
            if micro_step.weight:
                sums.add(loss.metrics, len(draw.time))
        settings.before_writing()
        applied = role.update()
    sums.add({"skipped_updates": applied.logical_not().float()}, 0)


def leave_out_phase(role: Role, settings: StepSettings) -> None:
    """A phase whose update is not due yet.

    The published code runs it all the same and throws the gradients away. What its passes do to
    the weights stays: a role that is normalised before each pass is normalised as often.
    """
    for micro_step in settings.plan.micro_steps(settings.rank):
        if micro_step.opens_group:
            role.prepare()


@torch.no_grad()
def sums_of_group(
    phase: Phase,
    sums_of: SumsOf,
    images_seen: int,
    plan: GroupPlan,
    first: MicroStep,
    draws: Draws,
) -> GroupSums:
    """Sums over a group that is split over passes: a look ahead, where samples are coupled."""
    found, width = [], first.stop
    for start in range(0, plan.group_size, width):
        part = replace(first, start=start, stop=start + width)
        begin_pass()
        draw, batch = draws(phase.stream, images_seen, part)
        found.append(sums_of(phase.nets, batch, draw))
    return GroupSums(*(sum(parts[1:], start=parts[0]) for parts in zip(*found, strict=True)))


def step(
    trainee: Trainee, objective: Objective, settings: StepSettings, draws: Draws, sums: Sums
) -> None:
    """One iteration: batch_size images seen.

    1. fake score: learns the generator's present distribution;
    2. generator: follows the difference between teacher and fake score;
    3. averaged generator.
    """
    generator, fake_score, teacher = trainee.generator, trainee.fake_score, trainee.teacher
    seen = trainee.images_seen

    nets = Networks(teacher, fake_score.network, generator.module)
    learn = Phase(fake_score, FAKE_SCORE, nets, objective.fake_loss, objective.fake_sums(seen))
    run_phase(learn, seen, settings, draws, sums)
    if objective.trains_generator(seen):
        nets = Networks(teacher, fake_score.module, generator.network)
        distil = Phase(
            generator, GENERATOR, nets, objective.generator_loss, objective.generator_sums(seen)
        )
        run_phase(distil, seen, settings, draws, sums)
    else:
        leave_out_phase(generator, settings)
    batch_size = settings.plan.batch_size
    beta = ema_beta(seen, batch_size, settings.ema_half_life, settings.ema_rampup)
    generator.average_into(trainee.generator_ema, beta)
    trainee.images_seen += batch_size
