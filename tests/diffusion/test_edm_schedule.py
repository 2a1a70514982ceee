"""EDM's noise levels against the published grid."""

import math

import pytest
import torch

from sid_ray.diffusion.schedules import EDMSchedule

# sigma at t, counted from the clean end (reference run of the official code)
GRID = {
    0.1: 0.0167,
    0.2: 0.0851,
    0.3: 0.3183,
    0.4: 0.9654,
    0.5: 2.5152,
    0.6: 5.839,
    0.7: 12.38,
    0.8: 24.41,
    0.9: 45.3,
    1.0: 80.0,
}


@pytest.mark.parametrize(("t", "sigma"), GRID.items())
def test_rho_grid(t, sigma):
    found = EDMSchedule().sigma_at(torch.tensor(1 - t, dtype=torch.float64))
    assert found.item() == pytest.approx(sigma, rel=3e-3)


def test_generator_levels_cover_t_max_of_the_grid():
    level = EDMSchedule().generator_level(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert level.sigma.tolist() == pytest.approx([0.002, 24.41], rel=1e-3)
    assert level.t.tolist() == pytest.approx([math.log(0.002) / 4, math.log(24.41) / 4], rel=1e-3)


def test_fake_levels_are_log_normal():
    level = EDMSchedule().fake_level(torch.tensor([-1.0, 0.0, 2.0]))
    assert level.sigma.log().tolist() == pytest.approx([-2.4, -1.2, 1.2], abs=1e-6)


def test_weight_and_noise():
    schedule = EDMSchedule()
    level = schedule.level(torch.tensor([0.5, 2.0]))
    assert schedule.fake_weight(level).tolist() == pytest.approx([8.0, 4.25])
    noisy = schedule.add_noise(torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2), level)
    assert noisy[:, 0, 0, 0].tolist() == pytest.approx([1.5, 3.0])


def test_the_generator_reads_noise_at_init_sigma():
    level = EDMSchedule(init_sigma=1.5).step_level(0, 1, 3, torch.zeros(1))
    assert level.sigma.tolist() == [1.5] * 3
    assert level.alpha.tolist() == [1.0] * 3
