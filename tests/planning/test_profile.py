"""Profiles of sid-ray bench: found again for the same work on the same machine, and only then."""

import dataclasses
import json

import pytest

from sid_ray.config.distill_config import replace
from sid_ray.config.sections import ResourcesConfig
from sid_ray.planning.profile import (
    SETTINGS,
    Profile,
    batch_key,
    network_key,
    read_profile,
    versions_here,
    write_profile,
)
from sid_ray.recipes.registry import recipe
from sid_ray.weights.description import ModelDescription

CARD = "NVIDIA H100 80GB HBM3"
CONFIG = recipe("digits-sid")
NETWORK = ModelDescription("edm2", {"channels": 8, "blocks": [1, 2]}, notes={"from": "a file"})
SETTINGS_FOUND = {"micro_batch": 64, "compile": "default", "zero_stage": 1, "overlap_comm": True}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path))
    return tmp_path


def measured(**changes) -> Profile:
    found = Profile(
        machine=CARD,
        gpus=8,
        network=network_key(NETWORK),
        precision=CONFIG.training.precision,
        batch=batch_key(CONFIG),
        settings=dict(SETTINGS_FOUND),
        seconds=1.25,
        peak_gib=61.5,
        versions=versions_here(),
    )
    return dataclasses.replace(found, **changes)


def test_a_profile_is_read_as_it_was_written(cache):
    path = write_profile(measured())
    assert path.parent == cache / "profiles"
    assert read_profile(CONFIG, NETWORK, CARD, 8) == measured()
    write_profile(measured(seconds=1.0))
    assert read_profile(CONFIG, NETWORK, CARD, 8).seconds == 1.0
    assert [file.name for file in path.parent.glob("*.json")] == [path.name]


def test_what_changes_the_work_or_the_machine_is_another_profile():
    write_profile(measured())
    other = ModelDescription("edm2", {"channels": 16, "blocks": [1, 2]})
    group = CONFIG.training.group_size // 2
    others = (
        (CONFIG, NETWORK, "NVIDIA A10G", 8),
        (CONFIG, NETWORK, CARD, 4),
        (CONFIG, other, CARD, 8),
        (replace(CONFIG, training__precision="bfloat16"), NETWORK, CARD, 8),
        (replace(CONFIG, training__group_size=group), NETWORK, CARD, 8),
        (replace(CONFIG, objective__num_steps=4), NETWORK, CARD, 8),
        (recipe("digits-sida"), NETWORK, CARD, 8),
    )
    assert [read_profile(*each) for each in others] == [None] * len(others)


def test_what_changes_neither_does_not_matter():
    """Notes of a network's file, the seed, and how many passes of the same kind there are."""
    write_profile(measured())
    config = replace(CONFIG, training__seed=7, training__batch_size=8 * CONFIG.training.batch_size)
    assert read_profile(config, dataclasses.replace(NETWORK, notes={}), CARD, 8) == measured()


def test_a_profile_of_other_versions_is_not_used_and_that_is_said():
    write_profile(measured(versions=versions_here() | {"torch": "2.12.1"}))
    told: list[str] = []
    assert read_profile(CONFIG, NETWORK, CARD, 8, told.append) is None
    (line,) = told
    assert f"torch 2.12.1 (here {versions_here()['torch']})" in line
    assert "deepspeed" not in line


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("", "json"),
        ({"settings": {"micro_batch": -1}}, "micro_batch"),
        ({"settings": {"compile": "yes"}}, "compile"),
        ({"settings": {"num_workers": 2}}, "num_workers"),
        ({"seconds": "fast"}, "seconds"),
        ({"more": 1}, "more"),
    ],
)
def test_a_damaged_profile_is_left_alone_and_named(changed, named):
    path = write_profile(measured())
    values = json.loads(path.read_text())
    path.write_text(changed if changed == "" else json.dumps(values | changed))
    told: list[str] = []
    assert read_profile(CONFIG, NETWORK, CARD, 8, told.append) is None
    assert len(told) == 1
    assert named in told[0]
    assert "\n" not in told[0]


def test_settings_are_fields_of_the_resources_section_and_typed_as_flags():
    assert set(SETTINGS) <= {field.name for field in dataclasses.fields(ResourcesConfig)}
    assert measured().flags == (
        "--resources.micro-batch 64 --resources.compile default --resources.zero-stage 1 "
        "--resources.overlap-comm"
    )
    assert measured(settings={"overlap_comm": False}).flags == "--resources.no-overlap-comm"
