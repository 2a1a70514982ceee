"""SiD's losses against numbers of the official code, and what must hold for any network."""

import copy

import pytest
import torch

from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.objectives.functional import sid_generator_loss, sid_weight
from sid_ray.objectives.sid import SiD
from sid_ray.types import Batch, Condition, Draw, Networks
from tests.conftest import Reference, relative_error
from tests.support.networks import Fixed, official_network, tiny_network

FLOAT32 = 1e-5  # the official code differs from its own float64 by up to 1e-6 here
FLOAT64 = 1e-12


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference("sid_losses")


def networks(reference: Reference, dtype: torch.dtype):
    built = {}
    for role in ("true", "fake"):
        built[role] = official_network(reference.json("network"))
        built[role].load_state_dict(reference.under(f"w_{role}/"))
        built[role].to(dtype)
    return built["true"].requires_grad_(False), built["fake"]


def draw_of(reference: Reference, phase: str, time: str, dtype: torch.dtype) -> Draw:
    noise = reference[f"{phase}/draw/01_randn_noise"].to(dtype)
    return Draw(noise, noise, reference[f"{phase}/draw/{time}"].flatten().to(dtype))


@pytest.mark.parametrize(
    ("dtype", "prefix", "tolerance"),
    [(torch.float32, "", FLOAT32), (torch.float64, "f64/", FLOAT64)],
)
def test_generator_loss_equals_the_official_one(reference, dtype, prefix, tolerance):
    teacher, fake = networks(reference, dtype)
    fake.requires_grad_(False)
    images = reference["in/images"].to(dtype).clone().requires_grad_(True)
    nets = Networks(teacher, fake, Fixed(images))
    objective = SiD(EDMSchedule(), alpha=1.2, generator_scale=1.0)
    draw = draw_of(reference, "generator", "00_rand_t", dtype)
    loss = objective.generator_loss(nets, Batch(reference["in/labels"].to(dtype)), draw)
    loss.total.backward()
    expected = reference[f"generator/{prefix}out/loss"].double().sum()
    assert loss.total.item() == pytest.approx(float(expected), rel=tolerance * 100)
    gradient = reference[f"generator/{prefix}grad/loss_sum/images"]
    assert relative_error(images.grad, gradient) < tolerance


@pytest.mark.parametrize(
    ("dtype", "prefix", "tolerance"),
    [(torch.float32, "", FLOAT32), (torch.float64, "f64/", FLOAT64)],
)
def test_fake_loss_equals_the_official_one(reference, dtype, prefix, tolerance):
    teacher, fake = networks(reference, dtype)
    nets = Networks(teacher, fake, Fixed(reference["in/images"].to(dtype)))
    draw = draw_of(reference, "fake", "00_randn_sigma", dtype)
    batch = Batch(reference["in/labels"].to(dtype))
    loss = SiD(EDMSchedule()).fake_loss(nets, batch, draw)
    loss.total.backward()
    expected = float(reference[f"fake/{prefix}out/loss_fake_score"].double().sum())
    assert loss.total.item() == pytest.approx(expected, rel=tolerance * 10)
    found = dict(fake.named_parameters())
    for name, gradient in reference.under("fake/gradw/").items():
        # Weight gradients are recorded in float32 only.
        assert relative_error(found[name].grad, gradient) < 5e-5, name


def test_equal_scores_give_no_loss_and_no_gradient():
    teacher = tiny_network().requires_grad_(False)
    generator = tiny_network(seed=1)
    nets = Networks(teacher, copy.deepcopy(teacher), generator)
    noise = torch.randn(4, 1, 8, 8)
    draw = Draw(noise, noise.flip(0), torch.rand(4))

    def gradient_norm(fake_score: torch.nn.Module) -> tuple[float, float]:
        networks = nets._replace(fake_score=fake_score)
        loss = SiD(EDMSchedule()).generator_loss(networks, Batch(torch.eye(10)[:4]), draw)
        gradients = torch.autograd.grad(loss.total, list(generator.parameters()), allow_unused=True)
        return loss.total.item(), sum(g.norm().item() for g in gradients if g is not None)

    loss, norm = gradient_norm(nets.fake_score)
    _, other_norm = gradient_norm(tiny_network(seed=2).requires_grad_(False))
    assert loss == 0
    # Teacher and fake score cancel but for the rounding of their sum.
    assert norm < 1e-6 * other_norm


def test_gradient_equals_finite_differences():
    """With w held constant, as the loss is defined: dL/dy against (L(y+h) - L(y-h)) / 2h."""
    torch.manual_seed(0)
    teacher = tiny_network().double().requires_grad_(False)
    fake = tiny_network(seed=1).double().requires_grad_(False)
    schedule = EDMSchedule()
    level = schedule.generator_level(torch.rand(2, dtype=torch.float64))
    noise = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    cond = Condition(torch.eye(10, dtype=torch.float64)[:2])
    y = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    w = sid_weight(y, teacher(y + schedule.add_noise(0 * y, noise, level), level, cond).x0)

    def loss(image: torch.Tensor) -> torch.Tensor:
        x_t = schedule.add_noise(image, noise, level)
        f_phi, f_psi = teacher(x_t, level, cond).x0, fake(x_t, level, cond).x0
        delta = f_phi - f_psi
        return (delta * ((f_phi - image) - 1.2 * delta) / w.reshape(-1, 1, 1, 1)).sum()

    def whole(image: torch.Tensor) -> torch.Tensor:
        x_t = schedule.add_noise(image, noise, level)
        f_phi, f_psi = teacher(x_t, level, cond).x0, fake(x_t, level, cond).x0
        return sid_generator_loss(image, f_phi, f_psi, alpha=1.2).sum()

    (gradient,) = torch.autograd.grad(whole(y), y)
    direction, h = torch.randn_like(gradient), 1e-5
    y = y.detach()
    slope = (loss(y + h * direction) - loss(y - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-7)


def test_alpha_one_half_and_one_are_the_known_forms():
    y, f_phi, f_psi = torch.randn(3, 2, 1, 4, 4, dtype=torch.float64).unbind(0)
    w = sid_weight(y, f_phi).reshape(-1, 1, 1, 1)
    delta = f_phi - f_psi
    at_one = delta * (f_psi - y) / w
    assert torch.allclose(sid_generator_loss(y, f_phi, f_psi, 1.0), at_one)
    at_zero = delta * (f_phi - y) / w
    at_half = sid_generator_loss(y, f_phi, f_psi, 0.5)
    assert torch.allclose(at_half, (at_zero + at_one) / 2)


def test_weight_has_a_floor():
    y = torch.zeros(2, 1, 4, 4)
    assert sid_weight(y, y).tolist() == pytest.approx([1e-5, 1e-5])
