"""Statistics beside the losses: what they say, and that they cost no answer from the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.objectives.statistics import discriminator_statistics, sample_statistics
from sid_ray.objectives.vsd import VSD
from sid_ray.types import Networks, Pick, Scope
from tests.support.networks import Fixed, LabelledNoise, some_draw, tiny_network

SAMPLES = {"sample_mean", "sample_std", "sample_spread", "saturated_values"}
DISCRIMINATOR = {
    f"discriminator_{what}_{side}" for what in ("accuracy", "logit") for side in ("real", "fake")
}


def statistics(y: torch.Tensor, group_size: int = 0) -> dict[str, float]:
    """Means over the samples."""
    found = sample_statistics(y, torch.ones(len(y)), group_size)
    return {name: float(value) / len(y) for name, value in found.items()}


def test_statistics_of_known_distributions():
    rng = torch.Generator().manual_seed(0)
    found = statistics(0.3 + 0.5 * torch.randn(64, 3, 32, 32, generator=rng))
    assert found["sample_mean"] == pytest.approx(0.3, abs=0.01)
    assert found["sample_std"] == pytest.approx(0.5, rel=0.01)
    assert found["sample_spread"] == pytest.approx(0.5, rel=0.01)
    # Beyond 1: 1.4 standard deviations above the mean; beyond -1: 2.6 below.
    assert found["saturated_values"] == pytest.approx(0.0808 + 0.0047, abs=0.003)


def test_one_image_for_all_has_contents_and_no_spread():
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    found = statistics(image.expand(6, 1, 8, 8))
    assert found["sample_spread"] == 0
    assert found["sample_std"] > 0.5
    assert found["saturated_values"] == pytest.approx(2 / 64)


def test_latents_have_no_range():
    assert statistics(torch.randn(4, 4, 8, 8)).keys() == SAMPLES - {"saturated_values"}


@pytest.mark.parametrize("part", [2, 4, 8])
def test_parts_of_a_group_add_up_to_the_group(part):
    y = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    whole = sample_statistics(y, torch.ones(8), 8)
    parts = [sample_statistics(piece, torch.ones(part), 8) for piece in y.split(part)]
    for name, value in whole.items():
        assert torch.allclose(sum(piece[name] for piece in parts), value, rtol=1e-12), name


@pytest.mark.parametrize(("group_size", "sizes"), [(3, (3, 6)), (4, (1,)), (5, (5, 10))])
def test_ranks_measure_the_same_names(group_size, sizes):
    """Packed passes of odd groups hold an even number on one rank and an odd one on another."""
    for size in sizes:
        assert "sample_spread" not in statistics(torch.randn(size, 1, 8, 8), group_size)


def test_a_sample_that_is_not_finite_stands_in_no_statistic():
    y = torch.randn(4, 1, 8, 8)
    y[1] = 0  # as the losses leave it
    finite = torch.tensor([1.0, 0.0, 1.0, 1.0])
    found = sample_statistics(y, finite, 4)
    only_pair = sample_statistics(y[2:], torch.ones(2), 2)
    assert torch.allclose(found["sample_spread"], only_pair["sample_spread"])
    logits = torch.full((4, 1, 2, 2), 3.0)
    logits[1] = torch.nan
    found = discriminator_statistics(logits, -logits, finite)
    assert [float(found[name]) for name in sorted(DISCRIMINATOR)] == [3, 3, -9, 9]


def test_accuracy_is_the_share_of_logits_on_the_right_side():
    real = torch.tensor([[2.0, -1.0, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0]]).reshape(2, 1, 2, 2)
    found = discriminator_statistics(real, real, torch.ones(2))
    assert float(found["discriminator_accuracy_real"]) == 1.75
    assert float(found["discriminator_accuracy_fake"]) == 0.25
    assert float(found["discriminator_logit_real"]) == 1.5


def test_nothing_waits_for_the_device():
    """On the meta device any question about a value raises."""
    y, finite = torch.empty(4, 3, 8, 8, device="meta"), torch.empty(4, device="meta")
    logits = torch.empty(4, 1, 2, 2, device="meta")
    found = sample_statistics(y, finite, 4) | discriminator_statistics(logits, logits, finite)
    assert found.keys() == SAMPLES | DISCRIMINATOR
    assert all(value.shape == () and not value.requires_grad for value in found.values())


@pytest.mark.parametrize("kind", [SiD, SiDA, VSD])
def test_objectives_report_them_without_gradients(kind):
    torch.manual_seed(0)
    images = torch.randn(4, 1, 8, 8, requires_grad=True)
    nets = Networks(tiny_network(0), tiny_network(1), Fixed(images))
    objective, draw, batch = (
        kind(EDMSchedule()),
        some_draw(4),
        LabelledNoise().batch(Pick(torch.rand(4))),
    )
    scope = Scope(group_size=4)
    fake = objective.fake_loss(nets, batch, draw, scope).metrics
    generator = objective.generator_loss(nets, batch, draw, scope).metrics
    assert generator.keys() >= SAMPLES
    assert (fake.keys() >= DISCRIMINATOR) == (kind is SiDA)
    assert not any(value.requires_grad for value in (*fake.values(), *generator.values()))
    expected = statistics(images.detach(), 4)
    for name in SAMPLES:
        assert float(generator[name]) / 4 == pytest.approx(expected[name], rel=1e-6), name
    page = (Path(__file__).parents[2] / "docs" / "health.md").read_text()
    assert [name for name in (*fake, *generator) if f"`{name}`" not in page] == []
