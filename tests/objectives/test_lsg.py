"""SiD-LSG's guidance: where each kappa enters, in closed form and on a small Stable Diffusion."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sid_ray.denoisers.guidance import Guided
from sid_ray.denoisers.registry import family_of
from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR, draw_group
from sid_ray.diffusion.schedules import DiscreteVPSchedule, image_shape, x0_from_raw
from sid_ray.objectives.lsg import PLAIN, Guidance
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.types import Batch, Condition, Draw, Level, Networks, Prediction, Want
from tests.conftest import relative_error
from tests.support.networks import Fixed, some_draw, widened

REFERENCE = Path(__file__).parents[1] / "reference" / "lsg"
SHAPE, COUNT = (1, 4, 4), 3
KAPPAS = {
    "long": (1, 1, 1, 3),
    "short": (0.5, 1, 1, 1),
    "long-short": (2, 2, 2, 2),
    "zero-cfg": (0, 0, 0, 1),
    "anti-cfg": (-1, -1, -1, 1),
    "all different": (1.5, -0.5, 0.7, 2.5),
}


class Affine(nn.Module):
    """epsilon = slope * x_t + gain * mean(text), x_0 from it; logits = gain * (that mean)."""

    def __init__(self, slope: float, gain: float, prediction_type: str = "epsilon"):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.prediction_type = prediction_type
        self.texts: list[Tensor] = []

    def forward(
        self, x_t: Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        assert cond.text is not None
        self.texts.append(cond.text)
        shift = image_shape(self.gain * cond.text.mean((1, 2)))
        raw = self.slope * x_t + shift
        x0 = x0_from_raw(self.prediction_type, x_t, raw, level)
        return Prediction(x0, None, shift if Want.LOGITS in want else None, raw)


@dataclass
class Inputs:
    """Three float64 samples with a text each; m their means, m_0 the empty prompt's."""

    draw: Draw
    batch: Batch
    null: Tensor
    y: Tensor

    @property
    def m(self) -> Tensor:
        return image_shape(self.batch.text.mean((1, 2)))


@pytest.fixture
def inputs() -> Inputs:
    rng = torch.Generator().manual_seed(0)
    text = torch.randn(COUNT, 2, 5, generator=rng, dtype=torch.float64)
    null = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    draw = widened(some_draw(COUNT, shape=SHAPE))._replace(text_uniform=torch.ones(COUNT))
    y = torch.randn(COUNT, *SHAPE, generator=rng, dtype=torch.float64)
    return Inputs(draw, Batch(text=text), null, y)


def guided(kappas, null: Tensor, **changes) -> SiD:
    guidance = Guidance(*kappas, null_text=null, **changes)
    return SiD(DiscreteVPSchedule(), alpha=1.2, generator_scale=1.0, guidance=guidance)


@pytest.mark.parametrize("kappas", KAPPAS.values(), ids=KAPPAS)
def test_losses_have_their_closed_forms(inputs, kappas):
    """By hand: epsilon_kappa = a x_t + g (m_0 + kappa (m - m_0))."""
    teacher, fake = Affine(0.3, 0.8), Affine(-0.2, 1.7)
    objective = guided(kappas, inputs.null)
    nets = Networks(teacher, fake, Fixed(inputs.y))

    def x_t_at(level: Level) -> Tensor:
        alpha, sigma = image_shape(level.alpha), image_shape(level.sigma)
        return alpha * inputs.y + sigma * inputs.draw.noise

    def epsilon(net: Affine, kappa: float, x_t: Tensor) -> Tensor:
        mean = inputs.null.mean()
        return net.slope * x_t + net.gain * (mean + kappa * (inputs.m - mean))

    level = objective.schedule.fake_level(inputs.draw.time)
    error = epsilon(fake, kappas[0], x_t_at(level)) - inputs.draw.noise
    loss = objective.fake_loss(nets, inputs.batch, inputs.draw)
    assert torch.allclose(loss.total, (error**2).sum(), rtol=1e-12)

    level = objective.schedule.generator_level(inputs.draw.time)
    x_t = x_t_at(level)

    def x_0(net: Affine, kappa: float) -> Tensor:
        eps = epsilon(net, kappa, x_t)
        return (x_t - image_shape(level.sigma) * eps) / image_shape(level.alpha)

    f_phi, f_psi, second = x_0(teacher, kappas[3]), x_0(fake, kappas[1]), x_0(fake, kappas[2])
    w = (inputs.y - f_phi).abs().mean((1, 2, 3), keepdim=True)
    delta = f_phi - f_psi
    expected = (delta * ((second - inputs.y) - 0.2 * delta) / w).sum()
    loss = objective.generator_loss(nets, inputs.batch, inputs.draw)
    assert torch.allclose(loss.total, expected, rtol=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_fake_loss_is_the_plain_error_and_snr_times_that_of_x0(inputs, prediction_type):
    """Plain for epsilon; alpha^2 of it for v, the published snr / (snr + 1)."""
    fake = Affine(-0.2, 1.7, prediction_type)
    schedule = DiscreteVPSchedule(prediction_type=prediction_type)
    objective = replace(guided((1, 1, 1, 1), inputs.null), schedule=schedule)
    nets = Networks(fake, fake, Fixed(inputs.y))
    loss = objective.fake_loss(nets, inputs.batch, inputs.draw).total
    level = schedule.fake_level(inputs.draw.time)
    x_t = schedule.add_noise(inputs.y, inputs.draw.noise, level)
    found = fake(x_t, level, Condition(text=inputs.batch.text))
    target, weight = inputs.draw.noise, torch.ones(COUNT, dtype=torch.float64)
    if prediction_type == "v_prediction":
        target = image_shape(level.alpha) * target - image_shape(level.sigma) * inputs.y
        weight = level.alpha**2
    assert torch.allclose(loss, (image_shape(weight) * (found.raw - target) ** 2).sum(), rtol=1e-12)
    snr = (level.alpha / level.sigma) ** 2
    assert torch.allclose(loss, (image_shape(snr) * (found.x0 - inputs.y) ** 2).sum(), rtol=1e-9)


# Which text is seen by whom


def test_zero_cfg_hides_the_text_from_the_scores_but_not_from_the_logits(inputs):
    """kappa1 = kappa2 = kappa3 = 0: the fake score is unconditional, the discriminator is not."""
    other = inputs.batch._replace(text=inputs.batch.text + 1)
    objective = guided((0, 0, 0, 1), inputs.null)
    fake = Affine(-0.2, 1.7)
    level = objective.schedule.fake_level(inputs.draw.time)
    outcomes = []
    for batch in (inputs.batch, other):
        fake.zero_grad()
        loss = objective.fake_loss(Networks(fake, fake, Fixed(inputs.y)), batch, inputs.draw)
        loss.total.backward()
        gradients = (fake.slope.grad.clone(), fake.gain.grad.clone())
        cond, both = Condition(text=batch.text), Want.X0 | Want.LOGITS
        prediction, _ = objective.guidance.frozen(fake, inputs.y, level, cond, both)
        prediction.x0.sum().backward()
        outcomes.append((loss.total, gradients, prediction, fake.gain.grad.clone()))
    (loss, gradients, out, later), (loss_2, gradients_2, out_2, later_2) = outcomes
    assert torch.equal(loss, loss_2)
    assert gradients == gradients_2
    assert later == later_2
    assert torch.equal(out.x0, out_2.x0)
    assert not torch.allclose(out.logits, out_2.logits)


def test_text_dropout_is_seen_by_generator_and_fake_score(inputs):
    """The second prompt's uniform number is below the share: it becomes the empty one."""
    draw = inputs.draw._replace(text_uniform=torch.tensor([0.2, 0.05, 0.1]))
    expected = inputs.batch.text.clone()
    expected[1] = inputs.null
    objective = guided((1.5, 1, 1, 1), inputs.null, text_dropout=0.1)
    generator, fake = Affine(0.1, 1.0), Affine(-0.2, 1.7)
    nets = Networks(fake, fake, generator)
    objective.fake_loss(nets, inputs.batch, draw)
    assert [torch.equal(text, expected) for text in generator.texts] == [True]
    (seen,) = fake.texts  # both halves of the doubled batch
    assert torch.equal(seen[:COUNT], inputs.null.expand(COUNT, -1, -1))
    assert torch.equal(seen[COUNT:], expected)
    generator.texts.clear()
    objective.generator_loss(nets, inputs.batch, draw)
    assert torch.equal(generator.texts[0], inputs.batch.text), "never in the generator's phase"
    assert torch.equal(fake.texts[1], inputs.batch.text), "kappa4 is 1"
    assert torch.equal(fake.texts[2], inputs.batch.text), "kappa2 is 1"


@pytest.mark.parametrize(
    ("kappas", "drops"),
    [((1, 1, 1, 3), False), ((0.5, 1, 1, 1), True), ((1, 2, 1, 1), True), ((1, 1, 2, 1), True)],
)
def test_text_is_dropped_only_where_the_fake_score_is_guided(inputs, kappas, drops):
    objective = guided(kappas, inputs.null)
    assert objective.draw_spec.text == drops
    draw = inputs.draw._replace(text_uniform=torch.zeros(COUNT) if drops else None)
    text = objective.guidance.drop_text(inputs.batch, draw).text
    expected = inputs.null.expand(COUNT, -1, -1) if drops else inputs.batch.text
    assert torch.equal(text, expected)
    never = replace(objective, guidance=replace(objective.guidance, text_dropout=0.0))
    assert not never.draw_spec.text


def test_the_share_of_dropped_prompts(inputs):
    objective = guided((2, 2, 2, 2), inputs.null)
    count = 4000
    draw, _ = draw_group(0, FAKE_SCORE, 0, 0, count, (1, 1, 1), objective.draw_spec)
    batch = Batch(text=torch.zeros(count, 2, 5))
    dropped = (objective.guidance.drop_text(batch, draw).text != 0).all((1, 2))
    assert 0.08 < float(dropped.float().mean()) < 0.12


def test_a_missing_null_text_is_named(inputs):
    objective = guided((1, 1, 1, 2), None)
    nets = Networks(*(Affine(0.1, 1.0) for _ in range(2)), Fixed(inputs.y))
    with pytest.raises(ValueError, match="empty prompt's embedding"):
        objective.generator_loss(nets, inputs.batch, inputs.draw)


# A real network


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    pytest.importorskip("diffusers")
    config = json.loads((REFERENCE / "tiny_unet" / "config.json").read_text())
    model = family_of("stable-diffusion").build(config)
    model.unet.load_state_dict(
        load_file(REFERENCE / "tiny_unet" / "diffusion_pytorch_model.safetensors")
    )
    return model.double()


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(REFERENCE / "functions.safetensors")


def unet_inputs(recorded: dict[str, Tensor]) -> tuple[Draw, Batch, Tensor]:
    """The recorded texts and noise; (draw, batch, empty prompt)."""
    z, noise = recorded["in/z"].double(), recorded["in/noise"].double()
    time = torch.linspace(0.2, 0.7, len(z), dtype=torch.float64)
    text = recorded["in/text_embeddings"].double()
    return Draw(z, noise, time), Batch(text=text), recorded["in/uncond_embeddings"][0].double()


def test_all_kappas_one_are_plain_sid_to_the_bit(unet, recorded):
    draw, batch, null = unet_inputs(recorded)
    nets = Networks(unet, unet, unet)
    objective = guided((1, 1, 1, 1), null)
    plain = replace(objective, guidance=PLAIN)
    assert objective.draw_spec == plain.draw_spec
    for name in ("fake_loss", "generator_loss"):
        unet.zero_grad(set_to_none=True)
        losses, gradients = [], []
        for chosen in (objective, plain):
            loss = getattr(chosen, name)(nets, batch, draw).total
            losses.append(loss)
            gradients.append(torch.autograd.grad(loss, list(unet.parameters())))
        assert torch.equal(*losses)
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_kappa2_and_kappa3_are_two_guided_predictions(unet, recorded):
    draw, batch, null = unet_inputs(recorded)
    objective = guided((1, 1.5, -0.5, 1), null)
    level = objective.schedule.generator_level(draw.time)
    cond, want = Condition(text=batch.text), Want.X0 | Want.LOGITS
    with torch.no_grad():
        first, second = objective.guidance.frozen(unet, draw.noise, level, cond, want)
        for found, kappa in ((first.x0, 1.5), (second, -0.5)):
            expected = Guided(unet, kappa, null)(draw.noise, level, cond).x0
            assert relative_error(found, expected) < 1e-13
        logits = unet(draw.noise, level, cond, Want.LOGITS).logits
        assert relative_error(first.logits, logits) < 1e-13


def test_sida_guides_its_scores_and_not_its_discriminator(unet, recorded):
    """Logits are the text's on both sides, so that guidance changes no adversarial term."""
    draw, batch, null = unet_inputs(recorded)
    batch = batch._replace(images=draw.latents.flip(0))
    nets = Networks(unet, unet, Fixed(draw.latents))
    losses = []
    for kappas in ((1, 1, 1, 1), (2, 2, 2, 1)):
        guidance = Guidance(*kappas, text_dropout=0.0, null_text=null)
        objective = SiDA(DiscreteVPSchedule(), guidance=guidance)
        with torch.no_grad():
            fake = objective.fake_loss(nets, batch, draw).metrics
            generator = objective.generator_loss(nets, batch, draw).metrics
        losses.append(fake | generator)
    plain, guided_ones = losses
    for name in ("discriminator_loss", "adversarial_loss"):
        assert torch.allclose(plain[name], guided_ones[name], rtol=1e-12)
    for name in ("fake_loss", "generator_loss"):
        assert not torch.allclose(plain[name], guided_ones[name], rtol=1e-3)


def test_the_two_phases_draw_from_streams_of_their_own(inputs):
    spec = guided((2, 2, 2, 2), inputs.null).draw_spec
    draws = [draw_group(0, s, 0, 0, 8, SHAPE, spec)[0] for s in (FAKE_SCORE, GENERATOR)]
    assert not torch.equal(draws[0].text_uniform, draws[1].text_uniform)
    # Discrete timesteps come from uniform numbers in both.
    assert all(float(d.time.min()) >= 0 and float(d.time.max()) < 1 for d in draws)
