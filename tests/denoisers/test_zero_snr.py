"""Stable Diffusion 2.1's kind of teacher: it predicts v, and its noise levels may end in noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sid_ray.config.distill_config import replace
from sid_ray.config.sections import ScheduleConfig
from sid_ray.denoisers.noise import VP_NOISE, levels_of
from sid_ray.errors import UserError
from sid_ray.planning.trace_memory import inputs
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import objective_of
from sid_ray.types import Condition, Networks
from sid_ray.weights.folder import load_model
from tests.denoisers.tiny_pipeline import write_pipeline

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
LAST = {"rescale_zero_snr": True, "timestep_max": 1000, "init_timestep": 999}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("made") / "pipeline"
    write_pipeline(made, "!", "v_prediction", ZERO_SNR, sample_size=12)
    return made


def test_a_teachers_folder_says_that_its_levels_end_in_noise(folder):
    found = VP_NOISE.of_network(folder, {}, 16)
    assert (found.prediction_type, found.rescale_zero_snr) == ("v_prediction", True)
    VP_NOISE.check(found, folder)
    with pytest.raises(UserError, match=r"schedule\.rescale_zero_snr is False, but .* says True"):
        VP_NOISE.check(ScheduleConfig(kind="vp", prediction_type="v_prediction"), folder)


def test_a_generators_file_says_it_where_it_is_so():
    plain = VP_NOISE.one_step(ScheduleConfig(kind="vp"))
    assert "rescale_zero_snr" not in plain, "files of before say nothing"
    assert not levels_of(VP_NOISE, plain)[0].rescale_zero_snr
    chosen = ScheduleConfig(kind="vp", prediction_type="v_prediction", **LAST)
    schedule = levels_of(VP_NOISE, VP_NOISE.one_step(chosen) | {"num_steps": 2})[0]
    assert schedule.rescale_zero_snr
    like = torch.zeros(1)
    assert float(schedule.step_level(0, 1, 1, like).alpha) == 0


def test_the_teachers_sampler_begins_in_pure_noise(folder):
    net, described = load_model(folder)
    assert described.network["prediction_type"] == "v_prediction"
    chosen = VP_NOISE.of_network(folder, described.network, 16)
    text, latents = torch.randn(2, 77, 24), torch.randn(2, 4, 12, 12)
    sampler = VP_NOISE.sampler(chosen, 3, guidance=2.0)
    with torch.no_grad():
        found = sampler.run(net, latents, Condition(text=text), torch.zeros(77, 24))
    assert sampler.settings["rescale_zero_snr"] and found.isfinite().all()


def test_epsilon_is_refused_before_a_run_and_by_the_sampler(tmp_path):
    chosen = ScheduleConfig(kind="vp", rescale_zero_snr=True)
    VP_NOISE.check(chosen, tmp_path)
    with pytest.raises(UserError, match="timestep 999, which is pure noise"):
        VP_NOISE.check(
            ScheduleConfig(kind="vp", rescale_zero_snr=True, timestep_max=1000), tmp_path
        )
    with pytest.raises(UserError, match="predicts epsilon, which says nothing") as caught:
        VP_NOISE.sampler(chosen, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lsg", "sid", "sida", "vsd"])
def test_losses_are_finite_at_the_last_timestep(folder, name):
    """One of two samples in both phases, and the generator's input: no loss divides by alpha."""
    net, described = load_model(folder)
    teacher = load_model(folder)[0]
    for value in teacher.parameters():
        value.mul_(1.1)
    fields = {f"schedule__{key}": value for key, value in LAST.items()}
    config = replace(recipe("sd21-768-lsg-kappa2"), objective__name=name, **fields)
    objective = objective_of(config, torch.zeros(77, 24))
    unit = inputs(config, described, 2, objective.draw_spec, torch.device("cpu"))
    draw, batch = unit.part(0, 2)
    noises = {key: torch.randn_like(getattr(draw, key)) for key in ("latents", "noise")}
    draw = draw._replace(time=torch.tensor([0.3, 0.9999]), **noises)
    assert VP_NOISE.schedule(config.schedule).fake_level(draw.time).t.tolist() == [314, 999]
    trained = net.requires_grad_(True)
    for loss in (objective.fake_loss, objective.generator_loss):
        found = loss(Networks(teacher, trained, trained), batch, draw).total
        found.backward()
        assert found.isfinite()
    gradients = [value.grad for value in trained.parameters() if value.grad is not None]
    assert gradients and all(value.isfinite().all() for value in gradients)
    assert any(value.abs().max() > 0 for value in gradients)
