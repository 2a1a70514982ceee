"""Gradients to the image in closed form, on scores whose Jacobians are known matrices."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.objectives.functional import sid_weight
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.vsd import VSD
from sid_ray.types import Batch, Condition, Level, Networks, Prediction, Want
from tests.support.networks import Fixed, some_draw, widened

SHAPE, SIZE, COUNT = (1, 2, 2), 4, 3


@dataclass
class Linear:
    """x_0 = J x_t + b, the same J [SIZE, SIZE] whatever the level."""

    jacobian: Tensor
    bias: Tensor

    def __call__(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        flat = x_t.flatten(1) @ self.jacobian.T + self.bias
        return Prediction(x0=flat.reshape(x_t.shape))


def numbers(*shape: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def linear(seed: int, with_jacobian: bool = True) -> Linear:
    jacobian = numbers(SIZE, SIZE, seed=seed) if with_jacobian else torch.zeros(SIZE, SIZE).double()
    return Linear(jacobian, numbers(SIZE, seed=100 + seed))


def gradients(objective: SiD, teacher: Linear, fake: Linear) -> dict[str, Tensor]:
    """The objective's gradient to y, and what closed forms are made of, all [COUNT, SIZE]."""
    y = numbers(COUNT, *SHAPE, seed=7).requires_grad_()
    draw = widened(some_draw(COUNT, shape=SHAPE))
    loss = objective.generator_loss(Networks(teacher, fake, Fixed(y)), Batch(), draw)
    (gradient,) = torch.autograd.grad(loss.total, y)
    with torch.no_grad():
        level = objective.schedule.generator_level(draw.time)
        x_t = objective.schedule.add_noise(y, draw.noise, level)
        f_phi, f_psi = (score(x_t, level, Condition()).x0.flatten(1) for score in (teacher, fake))
        flat = y.flatten(1)
        w = sid_weight(flat, f_phi)[:, None]
    return {"gradient": gradient.flatten(1), "y": flat, "phi": f_phi, "psi": f_psi, "w": w}


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_sid_has_the_closed_form_of_linear_scores(alpha):
    """(J_D^T (f_phi - y) + (J_phi - I)^T Delta - 2 alpha J_D^T Delta) / w; J_D = J_phi - J_psi."""
    teacher, fake = linear(1), linear(2)
    found = gradients(SiD(EDMSchedule(), alpha=alpha, generator_scale=1.0), teacher, fake)
    delta = found["phi"] - found["psi"]
    j_d = teacher.jacobian - fake.jacobian
    expected = (found["phi"] - found["y"]) @ j_d - 2 * alpha * delta @ j_d
    expected = (expected + delta @ teacher.jacobian - delta) / found["w"]
    assert torch.allclose(found["gradient"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.2])
def test_without_jacobians_sid_is_vsd(alpha):
    teacher, fake = linear(1, with_jacobian=False), linear(2, with_jacobian=False)
    found = gradients(SiD(EDMSchedule(), alpha=alpha, generator_scale=1.0), teacher, fake)
    expected = -(found["phi"] - found["psi"]) / found["w"]
    assert torch.allclose(found["gradient"], expected, rtol=1e-12)


def test_vsd_is_delta_over_w_whatever_the_jacobians():
    """And so it is SiD's gradient less the Jacobians' terms."""
    teacher, fake = linear(1), linear(2)
    vsd = gradients(VSD(EDMSchedule(), alpha=1.2, generator_scale=3.0), teacher, fake)
    delta = vsd["phi"] - vsd["psi"]
    assert torch.allclose(vsd["gradient"], -3.0 * delta / vsd["w"], rtol=1e-12)
    sid = gradients(SiD(EDMSchedule(), alpha=1.2, generator_scale=3.0), teacher, fake)
    j_d = teacher.jacobian - fake.jacobian
    jacobian_terms = (sid["phi"] - sid["y"]) @ j_d + delta @ teacher.jacobian - 2.4 * delta @ j_d
    rest = sid["gradient"] - 3.0 * jacobian_terms / sid["w"]
    assert torch.allclose(rest, vsd["gradient"], rtol=1e-10, atol=1e-10)
    assert (jacobian_terms.norm(dim=1) > 0.1).all()


def test_vsd_runs_the_scores_without_gradient():
    asked = []

    def score(x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0) -> Prediction:
        asked.append(torch.is_grad_enabled())
        return Prediction(x0=x_t.tanh())

    y = numbers(COUNT, *SHAPE, seed=7).requires_grad_()
    draw = widened(some_draw(COUNT, shape=SHAPE))
    nets = Networks(score, score, Fixed(y))
    for objective, expected in ((VSD(EDMSchedule()), False), (SiD(EDMSchedule()), True)):
        asked.clear()
        objective.generator_loss(nets, Batch(), draw)
        assert asked == [expected, expected]
