"""Discrete VP noise levels: the numbers of Stable Diffusion's scheduler, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sid_ray.diffusion.schedules import (
    DiscreteVPSchedule,
    EDMSchedule,
    cumulative_alphas,
    read_scheduler_config,
    x0_from_raw,
)
from sid_ray.errors import UserError

REFERENCE = Path(__file__).parents[1] / "reference" / "lsg"
CPU = torch.device("cpu")
# The hub's scheduler_config.json of Stable Diffusion 1.5 and 2.1-base.
HUB = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def test_abar_has_the_published_values():
    abar = DiscreteVPSchedule().alphas_cumprod(CPU)
    published = {0: 0.99915, 20: 0.98131, 625: 0.137769, 979: 0.0059128, 999: 0.0046601}
    for t, value in published.items():
        assert float(abar[t]) == pytest.approx(value, rel=1.2e-5)  # five digits


def test_abar_equals_the_official_runs_to_the_bit():
    safetensors = pytest.importorskip("safetensors.torch")
    expected = safetensors.load_file(REFERENCE / "functions.safetensors")["in/alphas_cumprod"]
    assert torch.equal(DiscreteVPSchedule().alphas_cumprod(CPU), expected)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_abar_equals_diffusers_to_the_bit(beta_schedule):
    diffusers = pytest.importorskip("diffusers")
    for start, end, count in ((0.0001, 0.02, 1000), (0.00085, 0.012, 1000), (0.001, 0.03, 250)):
        theirs = diffusers.DDPMScheduler(count, start, end, beta_schedule).alphas_cumprod
        assert torch.equal(cumulative_alphas(beta_schedule, start, end, count, CPU), theirs)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_rescaled_abar_equals_diffusers_to_the_bit(beta_schedule):
    diffusers = pytest.importorskip("diffusers")
    for start, end, count in ((0.0001, 0.02, 1000), (0.00085, 0.012, 1000), (0.001, 0.03, 250)):
        theirs = diffusers.DDIMScheduler(
            count, start, end, beta_schedule, rescale_betas_zero_snr=True
        ).alphas_cumprod
        found = cumulative_alphas(beta_schedule, start, end, count, CPU, zero_snr=True)
        assert torch.equal(found, theirs)
        assert found[-1] == 0 and (found.diff() < 0).all()
        assert found[0] == pytest.approx(
            float(cumulative_alphas(beta_schedule, start, end, count, CPU)[0])
        )


def test_velocity_leads_to_x0_where_all_is_noise():
    schedule = DiscreteVPSchedule(
        prediction_type="v_prediction", rescale_zero_snr=True, t_max=1000, init_timestep=999
    )
    x_0, noise = torch.randn(2, 2, 4, 8, 8).unbind()
    level = schedule.step_level(0, 1, 2, x_0)
    x_t = schedule.add_noise(x_0, noise, level)
    assert torch.equal(x_t, noise)
    target = schedule.raw_target(x_0, noise, level)
    assert torch.equal(x0_from_raw("v_prediction", x_t, target, level), x_0)
    assert schedule.raw_weight(level).tolist() == schedule.fake_weight(level).tolist() == [0, 0]
    assert schedule.generator_level(torch.tensor([0.9999])).t.tolist() == [999]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"t_max": 1000}, "t_max 1000 reaches timestep 999, which is pure noise"),
        ({"init_timestep": 999}, "init_timestep 999 reaches timestep 999"),
    ],
)
def test_epsilon_says_nothing_where_all_is_noise(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        DiscreteVPSchedule(rescale_zero_snr=True, **fields)
    assert "\n" not in str(caught.value)
    DiscreteVPSchedule(rescale_zero_snr=True, t_max=999, init_timestep=998)
    DiscreteVPSchedule(**fields)


def test_add_noise_equals_diffusers_to_the_bit():
    diffusers = pytest.importorskip("diffusers")
    schedule = DiscreteVPSchedule()
    theirs = diffusers.DDPMScheduler.from_config(HUB)
    x_0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 625, 999])
    found = schedule.add_noise(x_0, noise, schedule.level(t))
    assert torch.equal(found, theirs.add_noise(x_0, noise, t))


def test_both_phases_draw_timesteps_evenly_and_leave_t_max_out():
    schedule = DiscreteVPSchedule()
    draws = (torch.arange(960, dtype=torch.float64) + 0.5) / 960
    for level in (schedule.fake_level(draws), schedule.generator_level(draws)):
        assert level.t.tolist() == list(range(20, 980))
        assert level.t.dtype == torch.int64
    edges = torch.tensor([0.0, 1 - 2**-24, 1.0])  # 1.0: a rounded-up float16 draw
    assert schedule.fake_level(edges).t.tolist() == [20, 979, 979]


def test_levels_are_variance_preserving_and_float32_at_least():
    schedule = DiscreteVPSchedule()
    for dtype, found in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        level = schedule.generator_level(torch.tensor([0.0, 0.3, 0.9], dtype=dtype))
        assert level.alpha.dtype == level.sigma.dtype == found
        assert torch.allclose(level.alpha**2 + level.sigma**2, torch.ones(3, dtype=found))


def test_the_generators_input_level():
    """abar_625 = 0.13777: an input deviation of 0.9286 and EDM's sigma 2.5017."""
    level = DiscreteVPSchedule().step_level(0, 1, 2, torch.zeros(2, 4, 8, 8))
    assert level.t.tolist() == [625, 625]
    assert level.sigma.tolist() == pytest.approx([0.9286] * 2, abs=1e-4)
    assert (level.sigma / level.alpha).tolist() == pytest.approx([2.5017] * 2, abs=1e-4)


def test_step_levels_fall_linearly():
    like = torch.zeros(1)
    steps = [int(DiscreteVPSchedule().step_level(i, 4, 1, like).t) for i in range(4)]
    assert steps == [625, 468, 312, 156]
    edm = EDMSchedule()
    sigmas = [float(edm.step_level(i, 4, 1, like).sigma) for i in range(4)]
    assert sigmas == [2.5, 1.875, 1.25, 0.625]
    assert torch.equal(edm.step_level(0, 4, 1, like).sigma, edm.step_level(0, 1, 1, like).sigma)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_raw_target_leads_back_to_x0_and_weights_agree(prediction_type):
    """raw_weight * |raw error|^2 = SNR * |x_0 error|^2, for epsilon and for v."""
    schedule = DiscreteVPSchedule(prediction_type=prediction_type)
    x_0, noise = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64).unbind()
    level = schedule.level(torch.tensor([20, 500, 979]), torch.float64)
    x_t = schedule.add_noise(x_0, noise, level)
    target = schedule.raw_target(x_0, noise, level)
    found = x0_from_raw(prediction_type, x_t, target, level)
    assert torch.allclose(found, x_0, atol=1e-12)
    wrong = target + torch.randn_like(target)
    x0_error = (x0_from_raw(prediction_type, x_t, wrong, level) - x_0).square().flatten(1).sum(1)
    raw_error = (wrong - target).square().flatten(1).sum(1)
    left, right = schedule.raw_weight(level) * raw_error, schedule.fake_weight(level) * x0_error
    assert torch.allclose(left, right, rtol=1e-10)


def test_v_target_equals_diffusers():
    diffusers = pytest.importorskip("diffusers")
    schedule = DiscreteVPSchedule(prediction_type="v_prediction")
    x_0, noise = torch.randn(2, 3, 4, 8, 8).unbind()
    t = torch.tensor([20, 500, 979])
    theirs = diffusers.DDPMScheduler.from_config(HUB).get_velocity(x_0, noise, t)
    assert torch.equal(schedule.raw_target(x_0, noise, schedule.level(t)), theirs)


@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_hubs_config_is_read(tmp_path, zero_snr):
    path = tmp_path / "scheduler_config.json"
    change = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_snr}
    path.write_text(json.dumps(HUB | change | {"timestep_spacing": "trailing"}))
    expected = DiscreteVPSchedule(
        prediction_type="v_prediction", rescale_zero_snr=zero_snr, t_max=900, init_timestep=700
    )
    assert read_scheduler_config(path, t_max=900, init_timestep=700) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2' is not supp"),
        ({"prediction_type": "sample"}, "prediction_type 'sample' is not supported"),
        ({"clip_sample": True}, "'clip_sample' = True is not supported; expected false"),
        ({"thresholding": True}, "'thresholding' = True"),
        ({"trained_betas": [0.1]}, "'trained_betas' = "),
        ({"num_train_timesteps": 500}, "t_min 20 to t_max 980 are not a range within 0..500"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps '1000' is not a whole number"),
        ({"beta_start": None}, "beta_start None is not a number"),
    ],
)
def test_other_schedulers_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(HUB | change))
    with pytest.raises(UserError, match=message) as caught:
        read_scheduler_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no scheduler at"),
        ("{", "is not JSON"),
        ("[]", "holds no object"),
        ('{"_class_name": "FlowMatchEulerDiscreteScheduler"}', "has no 'beta_start'"),
    ],
)
def test_what_is_no_scheduler_is_refused(tmp_path, text, message):
    path = tmp_path / "scheduler_config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_scheduler_config(path)


@pytest.mark.parametrize("init_timestep", [-1, 1000])
def test_the_init_timestep_must_exist(init_timestep):
    with pytest.raises(UserError, match="is not within 0"):
        DiscreteVPSchedule(init_timestep=init_timestep)
