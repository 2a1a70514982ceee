"""A teacher at another size than its own: network, generator, data set, plan, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from sid_ray.actors.build import WorkerSettings, build_networks
from sid_ray.config.distill_config import (
    DistillConfig,
    differences,
    replace,
    with_plain_resources,
)
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.storage.store import Store
from sid_ray.training.assemble import find_start, generator_description
from sid_ray.types import Condition
from sid_ray.weights.networks import load
from tests.denoisers.tiny_flow import write_flow_pipeline
from tests.denoisers.tiny_pipeline import write_pipeline, write_xl_pipeline
from tests.support.data_writer import layout, write_set

FLOW = ("sd3", "flux", "sana")
KINDS = (*FLOW, "stable-diffusion", "sdxl")
FACTOR = 2  # of the tiny auto-encoders


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("made")
    for name in FLOW:
        write_flow_pipeline(home / name, name)
    write_pipeline(home / "stable-diffusion")
    write_xl_pipeline(home / "sdxl")
    return home


def config_for(made: Path, name: str, tmp_path: Path, pixels: int, **dotted) -> DistillConfig:
    (tmp_path / "prompts.txt").write_text("a cat\na red dog\n")
    config = replace(
        with_plain_resources(DistillConfig()),
        teacher__source=str(made / name),
        teacher__resolution=pixels,
        data__name="prompts",
        data__source=str(tmp_path / "prompts.txt"),
        schedule__kind=family_of(name).noise.kind,
    )
    return replace(config, **dotted)


def settings_for(config: DistillConfig, start) -> WorkerSettings:
    return WorkerSettings(
        config=config.to_json(),
        run_folder="",
        teacher_folder=str(start.teacher),
        initial_generator="",
        local_folder="",
        run_key="",
        own_scaling=False,
        tracker=None,
        evaluator=None,
        components=start.components,
    )


@pytest.mark.parametrize("name", KINDS)
def test_the_whole_run_has_the_size_that_is_asked_for(made, name, tmp_path):
    config = config_for(made, name, tmp_path, 12)
    start, family = find_start(config), family_of(name)
    size = 12 // FACTOR
    assert family.shape(start.description.network)[1:] == (size, size)
    assert teacher_of(config) == start.description, "as sid-ray plan has it"
    built = build_networks(config, settings_for(config, start), 1, torch.device("cpu"))
    assert built.description == start.description
    noted = generator_description(config, built.description)
    assert family.shape(json.loads(noted.to_json())["network"])[1] == size
    net, own = built.trainee.teacher, load(str(made / name))[0]
    latents = torch.randn(1, *family.shape(start.description.network))
    level = family.noise.schedule(config.schedule).step_level(0, 1, 1, latents)
    text = torch.randn(1, *family.text_shape(start.description.network))
    with torch.no_grad():
        here, there = (n(latents, level, Condition(text=text)).x0 for n in (net, own))
    assert here.shape == latents.shape
    assert torch.allclose(here, there, atol=1e-5) == (name != "sdxl"), "it is told the size"


def test_its_own_size_changes_nothing_and_another_is_another_run(made, tmp_path):
    plain, own, other = (config_for(made, "sd3", tmp_path, pixels) for pixels in (0, 16, 12))
    assert find_start(own).description == find_start(plain).description
    assert list(differences(plain, other)) == ["teacher.resolution: 0 -> 12"]


def test_a_published_network_is_planned_at_its_size():
    config = replace(recipe("flux-dev-512-dit"), teacher__resolution=1024)
    assert family_of("flux").shape(teacher_of(config).network) == (16, 128, 128)
    config = replace(recipe("sana-600m-512-dit"), teacher__resolution=1024)
    assert family_of("sana").shape(teacher_of(config).network) == (32, 32, 32)


@pytest.mark.parametrize(
    ("name", "pixels", "words"),
    [
        ("sd3", 34, r"is 34, which .* cannot have: latents of 17x17 do not split into patches"),
        ("sd3", 36, r"latents of 18x18 are 9 patches a side; the network has positions for 8"),
        ("flux", 13, r"divides sides by 2: set a multiple of that, like 12$"),
        ("stable-diffusion", 1, r"set a multiple of that, like 2$"),
    ],
)
def test_sizes_that_a_network_cannot_have_are_refused(made, name, pixels, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        find_start(config_for(made, name, tmp_path, pixels))
    assert "teacher.resolution is" in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_of_one_size_is_told_so():
    config = replace(recipe("digits-sid"), teacher__resolution=16)
    with pytest.raises(UserError, match="is an edm network, which has one size only"):
        find_start(config)


def test_a_data_set_of_another_size_names_the_flag(made, tmp_path):
    latents = np.zeros((2, 32, 6, 6), np.float16)
    write_set(Store.at(tmp_path / "set"), "latents", layout(2, 2), latent=latents, prompt=["a"] * 2)
    dotted = {"data__name": "prepared", "data__source": str(tmp_path / "set")}
    find_start(config_for(made, "sd3", tmp_path, 12, **dotted))
    config = config_for(made, "sd3", tmp_path, 0, **dotted)
    with pytest.raises(UserError, match=r"set --teacher\.resolution to the size of its pictures"):
        find_start(config)
