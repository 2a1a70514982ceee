"""A checkpoint is whole or it is named and the one before it is used."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sid_ray.checkpoint.find import find_generator
from sid_ray.checkpoint.manifest import MANIFEST, DamagedCheckpointError, checkpoint_name
from sid_ray.errors import UserError
from sid_ray.weights.folder import ModelDescription, load_model
from tests.support.checkpoints import load_checkpoint, newest_whole, verify, write_checkpoint
from tests.support.networks import TINY, tiny_network
from tests.training.test_step import trainee_of

DESCRIPTION = ModelDescription("edm", TINY.to_json(), {"sigma": 2.5})


def write(run, images_seen: int, seed: int = 0):
    trainee = trainee_of(tiny_network(seed))
    trainee.images_seen = images_seen
    roles = {"fake_score": trainee.fake_score, "generator": trainee.generator}
    for role in roles.values():
        for parameter in role.module.parameters():
            parameter.grad = torch.randn_like(parameter)
        role.update()
    states = {name: role.state() for name, role in roles.items()}
    folder = run / checkpoint_name(images_seen, "a1")
    write_checkpoint(folder, trainee, roles, DESCRIPTION, "{}")
    return folder, trainee, states


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write(folder, 64)
    write(folder, 128, seed=1)
    (folder / "checkpoint_manager_snapshot.json").write_text("{}")
    return folder


@pytest.fixture
def run(written, tmp_path):
    """Two checkpoints, to damage."""
    return Path(shutil.copytree(written, tmp_path, dirs_exist_ok=True))


def test_state_survives_exactly(tmp_path):
    folder, trainee, states = write(tmp_path, 64)
    other = trainee_of(tiny_network(seed=9))
    roles = {"fake_score": other.fake_score, "generator": other.generator}
    load_checkpoint(folder, other, roles)
    assert other.images_seen == 64
    for name, role in roles.items():
        loaded = role.state()
        assert loaded.optimizer_steps == states[name].optimizer_steps == 1
        for key, value in states[name].tensors.items():
            assert torch.equal(loaded.tensors[key], value), key
    for key, value in trainee.generator_ema.state_dict().items():
        assert torch.equal(other.generator_ema.state_dict()[key], value)


def test_the_averaged_generator_is_a_network_by_itself(tmp_path):
    folder, trainee, _ = write(tmp_path, 64)
    network, description = load_model(folder / "generator_ema")
    assert description.one_step == {"sigma": 2.5}
    for key, value in trainee.generator_ema.state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


def test_newest_is_found_and_other_files_are_not_checkpoints(run):
    newest, damage = newest_whole(run)
    assert newest.name == "checkpoint_000000000128_a1"
    assert damage == []


FILES = (
    "fake_score.rank0000.safetensors",
    "generator.rank0000.safetensors",
    "generator_ema/model.safetensors",
    "generator_ema/model.json",
    MANIFEST,
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, file, harm):
    path = run / "checkpoint_000000000128_a1" / file
    content = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    newest, damage = newest_whole(run)
    assert newest.name == "checkpoint_000000000064_a1"
    assert len(damage) == 1
    assert "checkpoint_000000000128_a1" in damage[0]
    assert file in damage[0] or "does not match" in damage[0] or "is missing" in damage[0]


def test_a_foreign_schema_is_said(run):
    path = run / "checkpoint_000000000128_a1" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(DamagedCheckpointError, match="schema 99, this version reads 1, 2, 3"):
        verify(path.parent)


def test_generators_are_found_by_run_checkpoint_and_folder(run, tmp_path_factory):
    ema = run / "checkpoint_000000000128_a1" / "generator_ema"
    assert find_generator(run) == ema
    assert find_generator(ema.parent) == ema
    assert find_generator(ema) == ema
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="no whole checkpoint"):
        find_generator(empty)
    with pytest.raises(UserError, match="does not exist"):
        find_generator(empty / "nothing")
    for folder in run.glob("checkpoint_*/"):
        shutil.rmtree(folder / "generator_ema")
    with pytest.raises(UserError, match="is missing"):
        find_generator(run)
