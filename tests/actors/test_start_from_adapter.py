"""SiD2A from an adapter: its run is taken up as it is, or merged where the generator is whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from sid_ray.actors.build import BuiltNetworks, WorkerSettings, build_networks
from sid_ray.config.distill_config import DistillConfig, replace, with_plain_resources
from sid_ray.denoisers.adapters import merged_weights
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed.fragments import whole_state
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import find_start
from sid_ray.types import Condition
from sid_ray.weights.description import read_description, save_model
from sid_ray.weights.folder import load_model
from sid_ray.weights.networks import load_path
from sid_ray.weights.sources import resolve_source
from tests.weights.adapters import ALPHA, RANK, write_adapter

TEACHER = "builtin:digits-teacher"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def start(tmp_path) -> Path:
    """A generator's adapter over the teacher."""
    write_adapter(tmp_path / "start", resolve_source(TEACHER), notes={"teacher": TEACHER})
    return tmp_path / "start"


def config_from(start: Path, **fields) -> DistillConfig:
    return replace(
        recipe("digits-sid"),
        teacher__source=TEACHER,
        teacher__initial_generator=str(start),
        **fields,
    )


def built(config: DistillConfig) -> BuiltNetworks:
    found = find_start(config)
    settings = WorkerSettings(
        "", "", str(found.teacher), str(found.generator or ""), "", "key", True, None, None
    )
    settings = dataclasses.replace(settings, components=found.components)
    return build_networks(with_plain_resources(config), settings, 1, torch.device("cpu"))


def image(network: torch.nn.Module) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, 1, 8, 8, generator=rng)
    labels = torch.nn.functional.one_hot(torch.tensor([3, 7]), 10).float()
    with torch.no_grad():
        return network(x_t, EDMSchedule().step_level(0, 1, 2, x_t), Condition(labels)).x0


def same_image(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """To rounding: networks of a run lie in memory in an order of their own."""
    torch.testing.assert_close(image(one), image(other), rtol=0, atol=1e-5)


def test_a_run_of_whole_networks_begins_with_the_merged_weights(start):
    network, _ = load_model(start)
    made = built(config_from(start)).trainee
    found = made.generator.module.state_dict()
    expected = merged_weights(network)
    assert all(torch.equal(found[name], expected[name]) for name in found if name in expected)
    same_image(made.generator.module, network)
    teacher, _ = load_path(resolve_source(TEACHER))
    assert (image(network) - image(teacher)).abs().max() > 0.01, "the adapter changes nothing"
    same_image(made.fake_score.module, teacher)


def test_a_run_of_adapters_takes_over_a_and_b(start):
    made = built(config_from(start, adapter__rank=RANK, adapter__alpha=ALPHA)).trainee
    network, _ = load_model(start)
    same_image(made.generator.module, network)
    average, own = dict(whole_state(made.generator_ema)), made.generator.module.state_dict()
    expected = network.state_dict()
    assert average.keys() == own.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(own[name], value) and torch.equal(average[name], value)
    teacher, _ = load_path(resolve_source(TEACHER))
    same_image(made.fake_score.module, teacher)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adapter__rank": 4, "adapter__alpha": 7.5}, r"rank 3 \(here 4\): set adapter.rank"),
        ({"adapter__rank": 3}, r"alpha 7.5 \(here 3\): set adapter.alpha"),
        (
            {"adapter__rank": 3, "adapter__alpha": 7.5, "adapter__targets": "qkv"},
            r"targets .*\(here qkv\)",
        ),
    ],
)
def test_another_kind_of_adapter_is_refused_before_a_start(start, fields, words):
    with pytest.raises(UserError, match=words):
        find_start(config_from(start, **fields))


def test_a_whole_generator_is_no_start_of_an_adapter(tmp_path):
    network, own = load_path(resolve_source(TEACHER))
    whole = dataclasses.replace(own, one_step={"sigma": 2.5})
    save_model(tmp_path / "whole", network.state_dict(), whole)
    fields = {"adapter__rank": 3}
    with pytest.raises(UserError, match=r"is a whole network.*adapter.roles fake"):
        find_start(config_from(tmp_path / "whole", **fields))
    made = built(config_from(tmp_path / "whole", **fields, adapter__roles="fake")).trainee
    same_image(made.generator.module, network)


def test_an_adapter_of_another_base_is_refused_or_merged_into_its_own(start, tmp_path):
    network, own = load_path(resolve_source(TEACHER))
    tuned = {name: 1.01 * value for name, value in network.state_dict().items()}
    save_model(tmp_path / "tuned", tuned, own)
    fields = {"teacher__source": str(tmp_path / "tuned")}
    adapters = {"adapter__rank": RANK, "adapter__alpha": ALPHA}
    with pytest.raises(UserError, match="lies over a base whose sha256 begins with"):
        find_start(replace(config_from(start), **fields, **adapters))
    made = built(replace(config_from(start), **fields)).trainee
    same_image(made.generator.module, load_model(start)[0])
    described = read_description(start)
    gone = dataclasses.replace(described, notes=described.notes | {"teacher": "gone"})
    (start / "model.json").write_text(gone.to_json())
    with pytest.raises(UserError, match="is an adapter; its base: no network at gone"):
        find_start(replace(config_from(start), **fields))
    find_start(config_from(start))  # the teacher is its base
