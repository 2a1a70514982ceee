"""One side of benchmarks.step: a recipe's iterations in a process of their own, timed by phase.

Networks have random weights, as no teacher is at hand; fake score and generator differ from the
teacher by one percent, as in the midst of a run: at the very start the two scores are alike, and
the loss's gradient is rounding.
"""

from __future__ import annotations

import copy
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.official import OfficialRole, as_official
from sid_ray.commands.benching.made_up import GAIN, RandomSamples
from sid_ray.config.distill_config import DistillConfig, with_plain_resources
from sid_ray.denoisers.attention import set_attention
from sid_ray.denoisers.convolution import freeze, weights_of
from sid_ray.denoisers.precondition import set_memory_format
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.registry import family_of
from sid_ray.device.numerics import set_numerics
from sid_ray.distributed.roles import TorchRole, Trainee
from sid_ray.objectives.spec import objective_spec
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.planning.spec_networks import spec_network
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.training.allocator import keep_freed_memory
from sid_ray.training.assemble import adam_of, network_of, objective_of, rules_of
from sid_ray.training.draws import Draws, draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.types import Denoiser

LATE = 1 << 30  # images seen: every warm-up is over


@dataclass(frozen=True)
class Side:
    """What a process is to run."""

    config: DistillConfig
    official: bool
    device: str
    threads: int


class Clock:
    """Seconds by phase; ``paused`` ones do not count."""

    def __init__(self, device: torch.device):
        self.seconds: Counter[str] = Counter()
        self._device, self._last = device, 0.0

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def start(self) -> None:
        self.seconds.clear()
        self._last = self.now()

    def mark(self, phase: str) -> None:
        """The time since the last mark was this phase's."""
        now = self.now()
        self.seconds[phase] += now - self._last
        self._last = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        began = self.now()
        yield
        self._last += self.now() - began


class TimedRole:
    """A role whose phases are marked on a clock: what is before a backward pass is forward."""

    def __init__(self, name: str, role: Any, clock: Clock):
        self.name, self.role, self.clock = name, role, clock

    @property
    def network(self) -> Denoiser:
        return self.role.network

    @property
    def module(self) -> nn.Module:
        return self.role.module

    @property
    def prepares(self) -> bool:
        return self.role.prepares

    def prepare(self) -> None:
        self.role.prepare()
        self.clock.mark(f"{self.name} update")

    def backward(self, loss: Tensor) -> None:
        self.clock.mark(f"{self.name} forward")
        self.role.backward(loss)
        self.clock.mark(f"{self.name} backward")

    def update(self) -> Tensor:
        applied: Tensor = self.role.update()
        self.clock.mark(f"{self.name} update")
        return applied

    def average_into(self, average: nn.Module, beta: float) -> None:
        self.role.average_into(average, beta)
        self.clock.mark("average")


def networks(side: Side) -> list[nn.Module]:
    """Teacher, fake score, generator."""
    config = with_plain_resources(side.config)
    torch.manual_seed(0)
    teacher = spec_network(config, network_of(config, teacher_of(config)), side.device)
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.ndim == 0:
                parameter.fill_(GAIN)
    found = [teacher]
    for _ in range(2):
        net = copy.deepcopy(teacher)
        with torch.no_grad():
            for parameter in net.parameters():
                noise = torch.randn(parameter.shape).to(parameter)
                parameter.add_(noise * 0.01 * parameter.abs().mean())
        found.append(net)
    if not side.official:
        for net in found:
            set_memory_format(net, config.chosen.memory_format)
            set_attention(net, config.chosen.attention)
            set_recompute(net, config.chosen.activation_checkpointing)
    return found


def trainee_of(side: Side, clock: Clock) -> Trainee:
    """The roles as this side has them."""
    config = side.config
    teacher, *trained = networks(side)
    rules = rules_of(config, network_of(config, teacher_of(config)).family)
    roles = {}
    for name, net in zip((FAKE_SCORE, GENERATOR), trained, strict=True):
        net.requires_grad_(True)
        adam = adam_of(config, name)
        keeps = name == GENERATOR or not objective_spec(config.objective.name).discriminator
        role: Any = (
            OfficialRole(net, adam, rules[name], keeps)
            if side.official
            else TorchRole(net, adam, rules[name])
        )
        net.requires_grad_(False)
        roles[name] = TimedRole(name, role, clock)
    if not side.official:
        freeze(teacher)
    average = copy.deepcopy(trained[1])
    return Trainee(teacher, roles[FAKE_SCORE], roles[GENERATOR], average, LATE)


def run_side(side: Side, pipe: Connection) -> None:
    """Does what it is told through the pipe, an answer each: one iteration, or what is held."""
    torch.set_num_threads(side.threads)
    set_numerics(side.config.resources.deterministic)  # TF32 off, as both programs have it
    if not side.official and side.device == "cpu":
        keep_freed_memory()
    clock = Clock(torch.device(side.device))
    trainee, draws, objective, settings = prepared(side, clock)
    answers = {
        "iterate": lambda: iterate(side, clock, trainee, objective, settings, draws),
        "memory": lambda: memory(side, trainee),
        "weights": lambda: weights(trainee),
    }
    pipe.send("ready")
    while (asked := pipe.recv()) != "end":
        pipe.send(answers[asked]())


def prepared(side: Side, clock: Clock) -> tuple[Trainee, Draws, Any, StepSettings]:
    config = side.config
    trainee = trainee_of(side, clock)
    description = network_of(config, teacher_of(config))
    text = family_of(description.family).text_shape(description.network)
    objective = objective_of(config, torch.zeros(text) if text else None)
    plan = config.group_plan(1)
    settings = StepSettings(plan, 0, config.training.ema_half_life, config.training.ema_rampup)
    source = RandomSamples(config, description)
    device = torch.device(side.device)
    draws = draws_of(source, plan, config.training.seed, device, objective.draw_spec)
    return trainee, draws, objective, settings


def iterate(
    side: Side, clock: Clock, trainee: Trainee, objective: Any, settings: Any, draws: Draws
) -> dict[str, float]:
    """Seconds by phase of one iteration."""
    clock.start()
    with as_official(clock.paused) if side.official else nullcontext():
        step(trainee, objective, settings, draws, Sums())
    clock.mark("average")
    return dict(clock.seconds)


def memory(side: Side, trainee: Trainee) -> dict[str, Any]:
    """Bytes by role and kind between two iterations, and the most there has been in all."""
    found: dict[str, dict[str, int]] = {}
    for name, role in ((FAKE_SCORE, trainee.fake_score), (GENERATOR, trainee.generator)):
        parameters = list(role.module.parameters())
        states = role.role.optimizer.state.values()  # type: ignore[attr-defined]
        moments = [v for s in states for v in s.values() if isinstance(v, Tensor) and v.ndim]
        gradients = [p.grad for p in parameters if p.grad is not None]
        found[name] = {
            "weights": size_of(weights_of(role.module)),
            "gradients": size_of(gradients),
            "moments": size_of(moments),
        }
    found["teacher"] = {"weights": size_of(weights_of(trainee.teacher))}
    found["average"] = {"weights": size_of(trainee.generator_ema.parameters())}
    if side.device == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    else:
        peak = torch.cuda.max_memory_allocated()
    return {"roles": found, "peak": peak}


def size_of(tensors: Any) -> int:
    """Bytes of the storages of tensors, each counted once."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def weights(trainee: Trainee) -> dict[str, Tensor]:
    """All trained weights and the average, on the CPU."""
    nets = {
        FAKE_SCORE: trainee.fake_score.module,
        GENERATOR: trainee.generator.module,
        "average": trainee.generator_ema,
    }
    return {
        f"{role}/{name}": value.detach().cpu().clone()
        for role, net in nets.items()
        for name, value in net.named_parameters()
    }
