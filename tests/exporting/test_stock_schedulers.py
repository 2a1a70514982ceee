"""diffusers' schedulers, as exports set them, do what a generator's steps do.

The network is a smooth function of its input and of the level: what a pipeline does around it is
followed here step by step.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import diffusers

from sid_ray.config.sections import ScheduleConfig
from sid_ray.denoisers.flow_noise import FLOW_NOISE
from sid_ray.denoisers.noise import EDM_NOISE, VP_NOISE, levels_of
from sid_ray.diffusion.flow import x0_from_velocity
from sid_ray.diffusion.schedules import x0_from_raw
from sid_ray.errors import UserError
from sid_ray.evaluation.samplers import few_step
from sid_ray.types import Condition, Prediction

SHAPE = (2, 4, 8, 8)


def raw(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(1.3 * x + 0.002 * t.float().reshape(-1, 1, 1, 1)) + 0.1 * x


def stock_images(stock: Any, latents: Tensor, noises: list[Tensor], monkeypatch: Any) -> Tensor:
    """What a pipeline makes with a scheduler: first noise, its scale, the loop."""
    made = getattr(diffusers, stock.class_name).from_config(dict(stock.config))
    call = dict(stock.call)
    if "timesteps" in call or "sigmas" in call:
        del call["num_inference_steps"]  # as retrieve_timesteps of the pipelines
    made.set_timesteps(**call)
    drawn = iter([*noises, torch.zeros(SHAPE)])
    module = __import__(type(made).__module__, fromlist=["x"])
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(drawn))
    x = stock.latents_scale * latents * getattr(made, "init_noise_sigma", 1.0)
    for t in made.timesteps:
        seen = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
        x = made.step(raw(seen, t.expand(len(x))), t, x, return_dict=False)[0]
    return x


def own_images(noise: Any, one_step: Any, latents: Tensor, noises: list[Tensor]) -> Tensor:
    schedule, steps = levels_of(noise, one_step)

    def net(x: Tensor, level: Any, cond: Condition) -> Prediction:
        if noise is VP_NOISE:
            return Prediction(x0_from_raw(schedule.prediction_type, x, raw(x, level.t), level))
        return Prediction(x0_from_velocity(x, raw(x, 1000 * level.t), level))

    return few_step(net, schedule, latents, Condition(), steps, noises)


def check(noise: Any, steps: int, monkeypatch: Any, **chosen: Any) -> Any:
    config = ScheduleConfig(kind=noise.kind, **chosen)
    one_step = noise.one_step(config) | {"num_steps": steps}
    torch.manual_seed(0)
    latents, *noises = torch.randn(steps, *SHAPE)
    ours = own_images(noise, one_step, latents, noises)
    stock = noise.exported(one_step)
    theirs = stock_images(stock, latents, noises, monkeypatch)
    assert (theirs - ours).abs().max() < 1e-5 * ours.abs().max()
    return stock


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("timestep", [399, 625, 999])
def test_vp(timestep, steps, prediction, monkeypatch):
    stock = check(VP_NOISE, steps, monkeypatch, init_timestep=timestep, prediction_type=prediction)
    assert (stock.latents_scale == 1) == (steps == 1)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("timestep", [625, 999])
def test_vp_whose_levels_end_in_pure_noise(timestep, steps, monkeypatch):
    chosen = {"prediction_type": "v_prediction", "rescale_zero_snr": True}
    stock = check(VP_NOISE, steps, monkeypatch, init_timestep=timestep, **chosen)
    assert (stock.latents_scale == 1) == (steps == 1 or timestep == 999)


@pytest.mark.parametrize("noise", ["fresh", "ddim"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("init_time", "shift"), [(999, 1.0), (999, 3.0), (600, 1.5)])
def test_flow(init_time, shift, steps, noise, monkeypatch):
    stock = check(
        FLOW_NOISE,
        steps,
        monkeypatch,
        init_time=init_time,
        generator_shift=shift,
        step_noise=noise,
    )
    assert (stock.latents_scale == 1) == (init_time == 999)
    assert ("sigmas" in stock.call) == (steps > 1 or init_time < 999)


def test_what_no_scheduler_does_is_refused():
    fixed = FLOW_NOISE.one_step(ScheduleConfig(kind="flow", step_noise="fixed"))
    assert FLOW_NOISE.exported(fixed).call["num_inference_steps"] == 1
    with pytest.raises(UserError, match="step_noise fixed"):
        FLOW_NOISE.exported(fixed | {"num_steps": 2})
    short = VP_NOISE.one_step(ScheduleConfig(kind="vp", init_timestep=3))
    with pytest.raises(UserError, match="4 steps from timestep 3"):
        VP_NOISE.exported(short | {"num_steps": 4})
    with pytest.raises(UserError, match="no pipeline"):
        EDM_NOISE.exported({"sigma": 2.5})
