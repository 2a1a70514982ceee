"""SiDA's losses against numbers of the official code, and what couples the samples of a group."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sid_ray.denoisers.registry import family_of, from_official
from sid_ray.diffusion.schedules import EDMSchedule, NoiseLevels
from sid_ray.objectives import functional, sida
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.types import Batch, Draw, Networks, Pick, Scope
from tests.conftest import Reference, relative_error
from tests.denoisers.official import weights_from_seeds
from tests.support.networks import Fixed, LabelledNoise, some_draw, tiny_edm2, tiny_network, widened

# Of the loss's value and of gradients to images. The official float32 is off by up to 1e-6.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
WEIGHT_GRADIENTS = 5e-5  # recorded in float32 only, and off by up to 1e-5 there
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


class Case:
    """The official losses of one family. Everything recorded but the weights' gradients is f64."""

    def __init__(self, family: str):
        self.reference = Reference(f"sida_losses_{family}")
        self.edm2 = family == "edm2"
        loss = self.reference.json("loss_kwargs")
        schedule = EDMSchedule(p_mean=loss.get("P_mean", -1.2), p_std=loss.get("P_std", 1.2))
        self.objective = SiDA(schedule, alpha=1.0, logvar=self.edm2, official=True)

    def network(self, role: str, dtype: torch.dtype) -> torch.nn.Module:
        """Teacher (w_true) or fake score (w_fake)."""
        names = self.reference.json("class"), self.reference.json("network")
        family, arguments = from_official(*names)
        built = family_of(family).build(arguments)
        weights = self.reference.under(f"{role}/")
        if not weights:
            seeds, means = self.reference.json("seeds")[role], self.reference.json("means")[role]
            weights = weights_from_seeds(family, arguments, seeds, means)
        built.load_state_dict(weights)
        return built.to(dtype)

    def inputs(self, phase: str, time: str, dtype: torch.dtype) -> tuple[Draw, Batch]:
        noise = self.reference[f"{phase}/draw/01_randn_noise"].to(dtype)
        draw = Draw(noise, noise, self.reference[f"{phase}/draw/{time}"].flatten().to(dtype))
        images = self.reference["in/real_images"].to(dtype) if phase == "fake" else None
        return draw, Batch(self.reference["in/labels"].to(dtype), images)

    def value(self, name: str) -> float:
        return float(self.reference[name].sum())


@pytest.fixture(scope="module", params=["ddpmpp", "edm2"])
def case(request) -> Case:
    return Case(request.param)


@BOTH
def test_fake_score_and_discriminator_equal_the_official_ones(case, dtype):
    fake = case.network("w_fake", dtype)
    nets = Networks(fake, fake, Fixed(case.reference["in/images"].to(dtype)))
    draw, batch = case.inputs("fake", "00_randn_sigma", dtype)
    for name, metric, scales in (
        ("loss_fake_score", "fake_loss", (1.0, 0.0)),
        ("loss_D", "discriminator_loss", (0.0, 1.0)),
    ):
        fake.zero_grad()
        objective = replace(case.objective, fake_scale=scales[0], discriminator_weight=scales[1])
        loss = objective.fake_loss(nets, batch, draw)
        loss.total.backward()
        expected = case.value(f"fake/f64/out/{name}")
        assert float(loss.metrics[metric]) == pytest.approx(expected, rel=TOLERANCE[dtype])
        assert float(loss.total.detach()) == pytest.approx(expected, rel=TOLERANCE[dtype])
        found = dict(fake.named_parameters())
        gradients = case.reference.under(f"fake/gradw/{name}_sum/")
        assert len(gradients) >= 4
        for weight, gradient in gradients.items():
            assert relative_error(found[weight].grad, gradient) < WEIGHT_GRADIENTS, weight


@BOTH
def test_generator_loss_equals_the_official_one(case, dtype):
    """The gradient is that of the published loop: half SiD's loss, half the adversarial."""
    teacher = case.network("w_true", dtype).requires_grad_(False)
    fake = case.network("w_fake", dtype).requires_grad_(False)
    images = case.reference["in/images"].to(dtype, copy=True).requires_grad_(True)
    nets = Networks(teacher, fake, Fixed(images))
    draw, batch = case.inputs("generator", "00_rand_t", dtype)
    loss = case.objective.generator_loss(nets, batch, draw)
    (loss.total / len(images)).backward()
    expected = case.value("generator/f64/out/loss")
    assert float(loss.metrics["generator_loss"]) == pytest.approx(expected, rel=TOLERANCE[dtype])
    # The published loop multiplies by C * H * W; here the loss itself does.
    expected = case.value("generator/f64/out/loss_gan") * images[0].numel()
    assert float(loss.metrics["adversarial_loss"]) == pytest.approx(expected, rel=TOLERANCE[dtype])
    gradient = case.reference["generator/f64/grad/loop_combined/images"]
    assert relative_error(images.grad, gradient) < TOLERANCE[dtype]


def test_log_variance_is_spared_by_the_discriminator_unless_official():
    """The published code lets the discriminator's loss train the log-variance head."""
    case = Case("edm2")
    fake = case.network("w_fake", torch.float64)
    nets = Networks(fake, fake, Fixed(case.reference["in/images"].double()))
    draw, batch = case.inputs("fake", "00_randn_sigma", torch.float64)
    values, gradients = [], []
    for official in (True, False):
        fake.zero_grad(set_to_none=True)
        objective = replace(case.objective, fake_scale=0.0, official=official)
        loss = objective.fake_loss(nets, batch, draw)
        loss.total.backward()
        values.append(float(loss.total.detach()))
        named = fake.named_parameters()
        gradients.append({k: p.grad for k, p in named if p.grad is not None and p.grad.any()})
    assert values[0] == values[1]
    with_head, without = gradients
    assert with_head.keys() - without.keys() == {"logvar_linear.weight"}
    assert all(torch.equal(with_head[name], without[name]) for name in without)


# Any network


def tiny_case(family: str) -> tuple[SiDA, Networks, Draw, Batch]:
    """Four float64 samples, a discriminator that is neither certain nor dead, log-variance on."""
    build = tiny_network if family == "edm" else tiny_edm2
    teacher, fake = (build(seed).double().requires_grad_(False) for seed in (1, 2))
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    objective = SiDA(EDMSchedule(), alpha=1.0, logvar=family == "edm2", adversarial_weight=1.0)
    batch = LabelledNoise().batch(Pick(torch.rand(4)))
    return objective, Networks(teacher, fake, Fixed(images)), widened(some_draw(4)), widened(batch)


@pytest.mark.parametrize("family", ["edm", "edm2"])
def test_gradient_equals_finite_differences(family, monkeypatch):
    """Of the whole generator loss, with w held constant as it is defined."""
    objective, nets, draw, batch = tiny_case(family)
    y = nets.generator.images
    seen = objective.score(nets, batch, draw)
    w = functional.sid_weight(seen.y, seen.f_phi)
    monkeypatch.setattr(NoiseLevels, "loss_divisor", lambda *_: w)

    def loss(images: torch.Tensor) -> torch.Tensor:
        given = nets._replace(generator=Fixed(images))
        return objective.generator_loss(given, batch, draw).total

    (gradient,) = torch.autograd.grad(loss(y), y)
    with torch.no_grad():
        direction, h = torch.randn_like(y), 1e-5
        slope = (loss(y + h * direction) - loss(y - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-7)


def test_the_groups_mean_is_taken_over_the_whole_group():
    """By hand: sum of the weights times the mean of the values, group by group."""
    objective, nets, draw, batch = tiny_case("edm")
    seen = objective.score(nets, batch, draw, sida.Want.X0 | sida.Want.LOGITS)
    value = torch.nn.functional.softplus(-seen.logits.clamp(-10, 10)).mean((1, 2, 3))
    weight = 1 / (seen.y - seen.f_phi).abs().mean((1, 2, 3))
    assert value.std() > 0.001 * value.mean()
    assert weight.std() > 0.01 * weight.mean()
    for size in (4, 2, 1):
        groups = range(0, 4, size)
        expected = sum(weight[i : i + size].sum() * value[i : i + size].mean() for i in groups)
        loss = objective.generator_loss(nets, batch, draw, Scope(group_size=size))
        found = float(loss.metrics["adversarial_loss"]) / 64  # times C * H * W
        assert found == pytest.approx(float(expected.detach()), rel=1e-12)


@pytest.mark.parametrize("family", ["edm", "edm2"])
def test_group_size_is_part_of_the_loss_of_sida_alone(family):
    objective, nets, draw, batch = tiny_case(family)
    y = nets.generator.images
    plain = SiD(EDMSchedule(), alpha=1.0, logvar=family == "edm2")
    gradients = {}
    for size in (2, 4):
        for name, loss in (("sida", objective.generator_loss), ("sid", plain.generator_loss)):
            total = loss(nets, batch, draw, Scope(group_size=size)).total
            (gradients[name, size],) = torch.autograd.grad(total, y)
    assert torch.equal(gradients["sid", 2], gradients["sid", 4])
    assert relative_error(gradients["sida", 2], gradients["sida", 4]) > 1e-5


def test_thresholds_count_the_images_before_the_iteration_and_are_strict():
    objective, nets, draw, batch = tiny_case("edm")
    objective = replace(objective, adversarial_start=200, generator_start=100)
    plain = SiD(EDMSchedule(), alpha=1.0).generator_loss(nets, batch, draw).total
    for seen in (0, 200):
        loss = objective.generator_loss(nets, batch, draw, Scope(seen))
        assert torch.equal(loss.total, plain)
        assert "adversarial_loss" not in loss.metrics
    loss = objective.generator_loss(nets, batch, draw, Scope(201))
    half = 0.5 * plain + 0.5 * loss.metrics["adversarial_loss"]
    assert float(loss.total.detach()) == pytest.approx(float(half.detach()), rel=1e-12)
    assert [objective.trains_generator(seen) for seen in (0, 100, 101)] == [False, False, True]
    from_the_start = replace(objective, adversarial_start=0, generator_start=0)
    assert from_the_start.trains_generator(0)
    assert "adversarial_loss" in from_the_start.generator_loss(nets, batch, draw).metrics


def test_real_and_generated_images_share_noise_and_level_but_not_masks():
    """Where both are the same images, only dropout can tell one from the other."""
    objective, nets, draw, batch = tiny_case("edm")
    asked = []

    def spy(x_t, level, cond, want):
        prediction = nets.fake_score(x_t, level, cond, want)
        asked.append((x_t, cond.real, prediction))
        return prediction

    for dropped in (True, False):
        drawn = draw if dropped else draw._replace(dropout_keys=None)
        objective.fake_loss(Networks(spy, spy, Fixed(batch.images)), batch, drawn)
        ((fake_x, real_x, prediction),) = asked  # one pass for both
        asked.clear()
        assert torch.equal(fake_x, real_x)
        alike = torch.isclose(prediction.logits, prediction.real_logits, rtol=1e-4)
        assert alike.all() != dropped
