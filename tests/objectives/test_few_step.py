"""Few-step generators in training: one drawn step has a gradient, the others only prepare it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR, draw_group
from sid_ray.diffusion.schedules import DiscreteVPSchedule, EDMSchedule, image_shape
from sid_ray.objectives.generation import generator_step
from sid_ray.objectives.sid import SiD
from sid_ray.types import (
    Batch,
    Condition,
    Draw,
    DrawSpec,
    Level,
    Networks,
    Prediction,
    Schedule,
    Want,
)
from tests.support.networks import some_draw, tiny_network, widened

STEPS, COUNT, SHAPE = 3, 2, (1, 4, 4)


class Shrink:
    """x_0 = gain * x_t, and a note of every call."""

    def __init__(self) -> None:
        self.gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        self.calls: list[tuple[Tensor, Level, Condition, bool]] = []

    def __call__(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        self.calls.append((x_t.detach(), level, cond, torch.is_grad_enabled()))
        return Prediction(x0=self.gain * x_t)


def drawn(step: int | None) -> Draw:
    draw = widened(some_draw(COUNT, shape=SHAPE))
    if step is None:
        return draw
    rng = torch.Generator().manual_seed(5)
    more = torch.randn(COUNT, STEPS - 1, *SHAPE, generator=rng, dtype=torch.float64)
    return draw._replace(step=step, more_noise=more)


def generate(
    schedule: Schedule, step: int, dropout: bool = True, official: bool = False
) -> tuple[Tensor, Shrink, Draw]:
    net, draw = Shrink(), drawn(step)
    objective = SiD(schedule, num_steps=STEPS, official=official)
    y = objective.generate(Networks(net, net, net), Batch(), draw, dropout)
    return y, net, draw


@pytest.mark.parametrize("step", range(STEPS))
def test_only_the_drawn_step_has_a_gradient(step):
    """y_k = g (y_{k-1} + s_k noise_k): dy_k/dg is its input alone, earlier steps are constants."""
    y, net, draw = generate(EDMSchedule(), step)
    assert [enabled for *_, enabled in net.calls] == [False] * step + [True]
    y.sum().backward()
    before = torch.zeros_like(draw.latents)
    for index in range(step + 1):
        noise = draw.latents if index == 0 else draw.more_noise[:, index - 1]
        x_t = before + 2.5 * (STEPS - index) / STEPS * noise
        assert torch.allclose(net.calls[index][0], x_t, rtol=1e-12)
        before = 0.7 * x_t
    assert torch.allclose(y, before, rtol=1e-12)
    assert float(net.gain.grad) == pytest.approx(float(x_t.sum()), rel=1e-12)


def test_levels_fall_linearly():
    _, net, _ = generate(EDMSchedule(init_sigma=3.0), STEPS - 1)
    assert [float(level.sigma[0]) for _, level, *_ in net.calls] == pytest.approx([3.0, 2.0, 1.0])
    _, net, _ = generate(DiscreteVPSchedule(init_timestep=625), STEPS - 1)
    assert [level.t.tolist() for _, level, *_ in net.calls] == [
        [t] * COUNT for t in (625, 416, 208)
    ]
    assert all(level.alpha.dtype == torch.float64 for _, level, *_ in net.calls)


def test_dropout_is_on_in_the_drawn_step_alone():
    _, net, draw = generate(EDMSchedule(), 2)
    keys = [cond.dropout_keys for _, _, cond, _ in net.calls]
    assert keys[0] is keys[1] is None
    assert torch.equal(keys[2], draw.dropout_keys)
    _, net, _ = generate(EDMSchedule(), 2, dropout=False)
    assert all(cond.dropout_keys is None for _, _, cond, _ in net.calls)


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("schedule", [EDMSchedule(), DiscreteVPSchedule()], ids=["edm", "vp"])
def test_the_published_gradient_passes_all_steps(schedule, step):
    """Whichever step is drawn: the last output counts, and every step has masks of its own."""
    y, net, draw = generate(schedule, step, official=True)
    assert [enabled for *_, enabled in net.calls] == [True] * STEPS
    gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    noises, expected = (draw.latents, *draw.more_noise.unbind(1)), torch.zeros_like(y)
    for index, noise in enumerate(noises):
        level = schedule.step_level(index, STEPS, COUNT, expected)
        expected = gain * schedule.add_noise(expected, noise, level)
    assert torch.allclose(y, expected, rtol=1e-12)
    y.sum().backward()
    expected.sum().backward()
    assert float(net.gain.grad) == pytest.approx(float(gain.grad), rel=1e-12)
    keys = {tuple(cond.dropout_keys.tolist()) for _, _, cond, _ in net.calls}
    assert len(keys) == STEPS
    assert tuple(draw.dropout_keys.tolist()) in keys


def test_no_gradient_in_the_fake_score_phase():
    with torch.no_grad():
        y, net, _ = generate(EDMSchedule(), 2)
    assert not y.requires_grad
    assert not any(enabled for *_, enabled in net.calls)


def test_one_step_draws_nothing_more_and_is_one_evaluation():
    assert SiD(EDMSchedule()).draw_spec == DrawSpec()
    draw, _ = draw_group(0, GENERATOR, 0, 0, 4, (1, 8, 8), DrawSpec())
    assert draw.step is None
    assert draw.more_noise is None
    net, batch = tiny_network(), Batch(torch.eye(10)[:4])
    y = SiD(EDMSchedule()).generate(Networks(net, net, net), batch, draw, dropout=True)
    cond = Condition(batch.labels, dropout_keys=draw.dropout_keys)
    z = draw.latents
    assert torch.equal(y, generator_step(net, EDMSchedule(), None, z, z, 0, 1, cond).image)
    level = EDMSchedule().level(torch.full((4,), 2.5))
    expected = net(draw.latents * image_shape(level.sigma), level, cond).x0
    assert torch.equal(y, expected)


def test_the_step_is_one_for_all_groups_and_even_over_iterations():
    spec, steps = SiD(EDMSchedule(), num_steps=4).draw_spec, []
    assert spec == DrawSpec(num_steps=4)
    for images_seen in range(0, 4000, 8):
        of_group = {
            draw_group(0, GENERATOR, images_seen, group, 2, (1, 1, 1), spec)[0].step
            for group in (0, 1)
        }
        (step,) = of_group
        steps.append(step)
    counts = torch.bincount(torch.tensor(steps), minlength=4)
    # 500 draws over 4 steps: 125 each, standard deviation 10.
    assert (counts - 125).abs().max() < 40
    other = draw_group(0, FAKE_SCORE, 0, 0, 2, (1, 1, 1), spec)[0]
    assert other.more_noise.shape == (2, 3, 1, 1, 1)


def test_more_steps_leave_the_other_draws_alone():
    plain, data = draw_group(0, GENERATOR, 8, 1, 4, SHAPE, DrawSpec())
    more, same_data = draw_group(0, GENERATOR, 8, 1, 4, SHAPE, DrawSpec(num_steps=4))
    assert all(torch.equal(a, b) for a, b in zip(plain[:4], more[:4], strict=True))
    assert torch.equal(data, same_data)
    later = torch.cat([more.latents[:, None], more.more_noise], 1).flatten(2)
    assert len(torch.unique(later)) == later.numel(), "no noise is used twice"
