"""What flow matching changes in the losses: properties beside the official numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sid_ray.config.sections import ObjectiveConfig
from sid_ray.diffusion.flow import FlowSchedule, GuidedFlowSchedule
from sid_ray.diffusion.weighting import WEIGHTINGS
from sid_ray.objectives.lsg import Guidance
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.objectives.vsd import VSD
from sid_ray.types import Batch, Condition, Draw, Level, Networks, Prediction, Scope, Want
from tests.support.networks import Fixed

SHAPE, COUNT = (2, 2, 3), 4
SIZE = 12


class Velocity:
    """v = J x_t + t b; logits are x_t's sums and those of real images."""

    def __init__(self, seed: int):
        rng = torch.Generator().manual_seed(seed)
        self.jacobian = torch.randn(SIZE, SIZE, generator=rng, dtype=torch.float64) / 3
        self.bias = torch.randn(SIZE, generator=rng, dtype=torch.float64)
        self.jacobian.requires_grad_(True)

    def __call__(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        t = level.t[:, None]
        v = (x_t.flatten(1) @ self.jacobian.T + t * self.bias).reshape(x_t.shape)
        logits = self.judged(x_t) if Want.LOGITS in want else None
        real = None if cond.real is None else self.judged(cond.real)
        return Prediction(x_t - t[..., None, None] * v, None, logits, v, real)

    def judged(self, x: Tensor) -> Tensor:
        """[B, 1, 3]."""
        return (x.flatten(1) @ self.jacobian[:, :3])[:, None]


def numbers(seed: int, count: int = COUNT) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=rng, dtype=torch.float64)


def some_draw(count: int = COUNT) -> Draw:
    time = torch.randn(count, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return Draw(numbers(1, count), numbers(2, count), time)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_vsds_gradient_is_minus_delta_times_w(weighting):
    schedule, draw = FlowSchedule(weighting=weighting), some_draw()
    teacher, fake, y = Velocity(1), Velocity(2), numbers(3).requires_grad_(True)
    loss = VSD(schedule, generator_scale=1.0).generator_loss(
        Networks(teacher, fake, Fixed(y)), Batch(), draw
    )
    (gradient,) = torch.autograd.grad(loss.total, y)
    level = schedule.generator_level(draw.time)
    x_t = schedule.add_noise(y, draw.noise, level)
    f_phi, f_psi = (net(x_t, level, Condition()).x0 for net in (teacher, fake))
    w = 1 / schedule.loss_divisor(level, y, f_phi)
    assert torch.allclose(gradient, -(f_phi - f_psi) * w[:, None, None, None], rtol=1e-12)
    v_phi, v_psi = (net(x_t, level, Condition()).raw for net in (teacher, fake))
    by_velocities = -level.t[:, None, None, None] * (v_psi - v_phi) * w[:, None, None, None]
    assert torch.allclose(gradient, by_velocities, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", range(3))
def test_the_published_code_trains_one_drawn_step_too(step):
    """Of flow matching: --compat official is no other gradient, as it is for EDM and EDM2."""
    draw = some_draw()._replace(step=step, more_noise=torch.stack([numbers(6), numbers(7)], 1))
    found = []
    for official in (False, True):
        net = Velocity(1)
        objective = SiD(FlowSchedule(), num_steps=3, official=official)
        y = objective.generate(Networks(net, net, net), Batch(), draw, dropout=True)
        found.append((y, torch.autograd.grad(y.square().sum(), net.jacobian)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def objective(**more: float) -> SiDA:
    return SiDA(FlowSchedule(), adversarial_weight=1.0, generator_scale=1.0, **more)


def part(value: Draw | Batch, rows: slice) -> Draw | Batch:
    return type(value)(*(None if each is None else each[rows] for each in value))


@pytest.mark.parametrize("phase", ["fake_loss", "generator_loss"])
def test_packing_and_splitting_groups_change_nothing(phase):
    """Each sample has its own weight: no sums of a group are asked for."""
    sida, draw, count = objective(), some_draw(2 * COUNT), 2 * COUNT
    images = numbers(3, count)
    batch = Batch(images=numbers(4, count))
    assert sida.fake_sums(0) is None
    assert sida.generator_sums(0) is None

    def run(rows: slice, group: int) -> tuple[Tensor, Tensor]:
        fake = Velocity(2)
        nets = Networks(Velocity(1), fake, Fixed(images[rows]))
        loss = getattr(sida, phase)(nets, part(batch, rows), part(draw, rows), Scope(0, group))
        return loss.total.detach(), torch.autograd.grad(loss.total, fake.jacobian)[0]

    whole = run(slice(0, count), count)
    for group, size in ((COUNT, count), (COUNT, COUNT), (COUNT, COUNT // 2), (COUNT, 1)):
        parts = [run(slice(start, start + size), group) for start in range(0, count, size)]
        total, gradient = (sum(values) for values in zip(*parts, strict=True))
        assert torch.allclose(total, whole[0], rtol=1e-12)
        assert torch.allclose(gradient, whole[1], rtol=1e-10)


def test_the_adversarial_terms_weigh_each_sample_by_itself():
    """CHW mean softplus in both phases; by w in the generator's, and clamped to -10 .. 10."""
    sida, draw, images, real = objective(), some_draw(), numbers(3), numbers(4)
    fake, batch = Velocity(2), Batch(images=real)
    nets = Networks(Velocity(1), fake, Fixed(images))
    level = sida.schedule.fake_level(draw.time)
    noisy = [sida.schedule.add_noise(x, draw.noise, level) for x in (images, real)]
    l_fake, l_real = (fake.judged(x).clamp(-10, 10) for x in noisy)
    softplus = torch.nn.functional.softplus
    value = (softplus(l_fake) + softplus(-l_real)).mean((1, 2)) / 2
    found = sida.fake_loss(nets, batch, draw)
    plain = SiD(sida.schedule).fake_loss(nets, batch, draw).total
    assert torch.allclose(found.total - plain, SIZE * value.sum(), rtol=1e-9)
    found = sida.generator_loss(nets, batch, draw).total
    plain = SiD(sida.schedule, generator_scale=1.0).generator_loss(nets, batch, draw).total
    gan = SIZE * ((1 - level.t) * softplus(-l_fake).mean((1, 2))).sum()
    assert torch.allclose(found, 0.5 * plain + 0.5 * gan, rtol=1e-9)
    late = replace(sida, adversarial_start=100).generator_loss(nets, batch, draw).total
    assert torch.equal(late, plain)


class Seen:
    """A network that is told the scale: it predicts scale + text, and keeps what it saw."""

    def __init__(self):
        self.calls: list[tuple[list[float], list[float]]] = []

    def __call__(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        told = torch.ones(len(x_t)) if cond.guidance is None else cond.guidance
        text = cond.text[:, 0, 0]
        self.calls.append((told.tolist(), text.tolist()))
        x0 = (told + text).reshape(-1, 1, 1, 1).expand_as(x_t)
        return Prediction(x0, raw=x0)


TEXT, NULL = torch.full((2, 1, 1), 5.0), torch.zeros(1, 1)


def asked(compat: str, schedule: type[FlowSchedule], **kappas: float) -> tuple[Seen, Guidance]:
    chosen = ObjectiveConfig(compat=compat, text_dropout=0.0, **kappas)
    return Seen(), SiD.of(chosen, schedule(), NULL).guidance


@pytest.mark.parametrize(
    ("compat", "schedule", "text"),
    [
        ("none", GuidedFlowSchedule, 0.0),
        ("official", GuidedFlowSchedule, 5.0),
        ("official", FlowSchedule, 0.0),
    ],
)
def test_kappa_0_is_the_empty_prompt_but_for_the_published_flux(compat, schedule, text):
    """Whose text stays, told 0: SiD-DiT, quirk 1."""
    net, guidance = asked(compat, schedule, kappa1=0.0, kappa4=0.0)
    for guided in (guidance.own(net), guidance.teacher(net)):
        guided(torch.zeros(2, *SHAPE), level_at(0.5), Condition(text=TEXT))
    assert net.calls == [([0.0, 0.0], [text, text])] * 2


def test_a_network_that_is_told_the_scale_is_told_each_of_two():
    """kappa2 and kappa3 mix one pair of passes, but not where the pair depends on the scale."""
    found = {}
    for schedule in (FlowSchedule, GuidedFlowSchedule):
        net, guidance = asked("none", schedule, kappa2=2.0, kappa3=3.0)
        x_t, cond = torch.zeros(2, *SHAPE), Condition(text=TEXT)
        first, second = guidance.frozen(net, x_t, level_at(0.5), cond, Want.X0)
        found[schedule] = float(first.x0.mean()), float(second.mean())
        scales = {scale for told, _ in net.calls for scale in told}
        assert scales == ({2.0} if schedule is FlowSchedule else {2.0, 3.0})
    assert found[GuidedFlowSchedule] == (2 + 2 * 5.0, 3 + 3 * 5.0)


def level_at(t: float) -> Level:
    return FlowSchedule().level(torch.full((2,), t))
