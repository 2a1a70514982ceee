"""What a worker makes of the driver's settings on a node of its own."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from sid_ray.actors import build
from sid_ray.actors.build import WorkerSettings, initial_generator, on_this_node
from sid_ray.config.distill_config import replace
from sid_ray.denoisers.registry import family_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import check_generator
from sid_ray.weights.folder import ModelDescription, save_model
from tests.checkpoint.test_remote_s3 import S3Bench
from tests.support.networks import TINY, TINY_EDM2

SETTINGS = WorkerSettings("", "/runs/x", "/not/here", "", "", "key", True, None, None)


def test_networks_that_only_the_driver_has_are_fetched_by_the_node(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "resolve_teacher", lambda config: tmp_path / "teacher")
    bench = S3Bench(tmp_path, bucket)
    (name,) = bench.stored(64)
    bench.spool.close()
    config = replace(
        recipe("digits-sid"),
        teacher__source=f"{bucket}/teacher",
        teacher__initial_generator=str(bench.run),
    )
    found = on_this_node(config, dataclasses.replace(SETTINGS, initial_generator="/nor/this"))
    assert found.teacher_folder == str(tmp_path / "teacher")
    assert Path(found.initial_generator).parts[-2:] == (name, "generator_ema")
    (tmp_path / "teacher").mkdir()
    assert on_this_node(config, found) == found


def test_a_server_of_the_config_is_the_processs(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://before:1")
    monkeypatch.setenv("AWS_REGION", "")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")
    config = replace(recipe("digits-sid"), storage__endpoint_url="http://here:2")
    assert on_this_node(config, SETTINGS) == SETTINGS
    assert os.environ["AWS_ENDPOINT_URL"] == "http://here:2"


@pytest.mark.parametrize(
    ("family", "teacher", "generator"),
    [
        ("edm2", TINY_EDM2, {"logvar": False}),
        ("edm2", TINY_EDM2, {"logvar_channels": 8}),
        ("edm2", dataclasses.replace(TINY_EDM2, logvar=False), {"logvar": True}),
        ("edm", TINY, {"augment_dim": 9}),
        ("edm", dataclasses.replace(TINY, augment_dim=9), {"augment_dim": 0}),
    ],
)
def test_a_generator_starts_with_all_that_it_uses(tmp_path, family, teacher, generator):
    """What check_generator lets pass can be taken up: layers that no generator uses may differ."""
    build = family_of(family).build
    network = build(teacher.to_json())
    torch.manual_seed(1)
    description = ModelDescription(family, teacher.to_json() | generator)
    start = build(description.network)
    save_model(tmp_path, start.state_dict(), description)
    of_teacher = ModelDescription(family, teacher.to_json())
    check_generator("there", of_teacher, description)
    settings = dataclasses.replace(SETTINGS, initial_generator=str(tmp_path))
    found = initial_generator(settings, network, of_teacher).state_dict()
    own = network.state_dict()
    assert found.keys() == own.keys()
    given = start.state_dict()
    unused = [name for name in found if "logvar" in name or "map_augment" in name]
    assert all(torch.equal(found[n], given[n]) for n in found if n not in unused)
    assert not all(torch.equal(found[n], own[n]) for n in found if n not in unused)
