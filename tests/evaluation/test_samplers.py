"""Samplers against what they must do for a Gaussian, and seeds that stand alone."""

import pytest
import torch

from sid_ray.config.sections import DataConfig
from sid_ray.data.source import open_source
from sid_ray.diffusion.schedules import EDMSchedule, image_shape
from sid_ray.diffusion.solvers import heun
from sid_ray.evaluation.samplers import (
    Inputs,
    few_step,
    inputs_of_seeds,
    sample_in_batches,
    seeded_inputs,
    seeded_latents,
    to_uint8,
)
from sid_ray.types import Condition, Prediction, Want


def gaussian_denoiser(mean: float, std: float):
    """The exact denoiser of N(mean, std^2): its sampler must arrive there."""

    def denoise(x_t, level, cond, want=Want.X0):
        sigma = image_shape(level.sigma)
        return Prediction(x0=(std**2 * x_t + sigma**2 * mean) / (std**2 + sigma**2))

    return denoise


def test_heun_turns_noise_into_the_data_distribution():
    latents = torch.randn(2000, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    coarse, finer, exact = (
        heun(gaussian_denoiser(0.3, 0.5), EDMSchedule(), latents, Condition(), num_steps=steps)
        for steps in (18, 72, 288)
    )
    assert exact.mean().item() == pytest.approx(0.3, abs=0.02)
    assert exact.std().item() == pytest.approx(0.5, rel=0.03)
    # Second order: four times the steps, a sixteenth of the error.
    assert (finer - exact).norm() < (coarse - exact).norm() / 10


def test_heun_counts_its_evaluations():
    calls = []

    def counting(x_t, level, cond, want=Want.X0):
        calls.append(float(level.sigma[0]))
        return Prediction(x0=x_t * 0)

    heun(counting, EDMSchedule(), torch.randn(1, 1, 2, 2), Condition(), num_steps=18)
    assert len(calls) == 35
    assert calls[0] == pytest.approx(80)
    assert calls[-1] == pytest.approx(0.002)


def test_one_step_reads_noise_at_init_sigma():
    seen = {}

    def recording(x_t, level, cond, want=Want.X0):
        seen.update(x_t=x_t, sigma=level.sigma)
        return Prediction(x0=x_t)

    latents = torch.randn(3, 1, 2, 2)
    few_step(recording, EDMSchedule(), latents, Condition())
    assert torch.equal(seen["x_t"], 2.5 * latents)
    assert seen["sigma"].tolist() == [2.5] * 3


def test_a_seed_stands_alone():
    together = seeded_latents([3, 4, 5], (1, 2, 2))
    assert torch.equal(together[1], seeded_latents([4], (1, 2, 2))[0])
    source = open_source(DataConfig(), (1, 8, 8))
    chosen = inputs_of_seeds(source, range(20), torch.tensor([7, 8] * 10))
    assert chosen.cond.labels.argmax(1).tolist() == [7, 8] * 10  # digits lie 0, 1, ... 9 in order
    drawn = seeded_inputs(source, range(500), num_steps=3)
    again = seeded_inputs(source, [7, 8], num_steps=3)
    assert torch.equal(drawn.cond.labels[7:9], again.cond.labels)
    assert torch.equal(drawn.more_noise[7:9], again.more_noise)
    drawn = drawn.cond.labels
    counts = drawn.sum(0)
    assert counts.min() > 25, "digits are nearly even"


@pytest.mark.parametrize("pad", [False, True])
def test_batches_join_in_order(pad):
    latents = torch.arange(10.0).reshape(10, 1, 1, 1)
    sizes = []

    def sampler(inputs):
        sizes.append(len(inputs.latents))
        return inputs.latents * 2

    images = sample_in_batches(sampler, Inputs(latents), batch=4, pad=pad)
    assert images.flatten().tolist() == [2.0 * i for i in range(10)]
    assert sizes == ([4, 4, 4] if pad else [4, 4, 2])


def test_pixels_are_truncated():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 128, 191, 255, 255]
