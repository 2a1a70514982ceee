"""A run that begins from another run's checkpoint has that one's bits, whatever its settings."""

import dataclasses
import shutil

import pytest
import torch

from sid_ray.checkpoint.manifest import MANIFEST
from sid_ray.checkpoint.warm_start import (
    began_at,
    begin_from,
    check_donor_adapters,
    check_donor_network,
    check_newest,
)
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.storage.store import Store
from sid_ray.weights.folder import ModelDescription, load_model
from tests.checkpoint.test_manifest import write
from tests.support.networks import TINY, TINY_EDM2, tiny_network
from tests.training.test_step import trainee_of


def roles_of(trainee):
    return {"fake_score": trainee.fake_score, "generator": trainee.generator}


def assert_equal_to(folder, states, trainee):
    assert trainee.images_seen == 192
    for name, role in roles_of(trainee).items():
        found = role.state()
        assert found.optimizer_steps == states[name].optimizer_steps == 1
        assert found.tensors.keys() == states[name].tensors.keys()
        for key, value in states[name].tensors.items():
            assert torch.equal(found.tensors[key], value), key
    average, _ = load_model(folder / "generator_ema")
    for key, value in average.state_dict().items():
        assert torch.equal(trainee.generator_ema.state_dict()[key], value)


def test_an_exploit_has_the_donors_bits(tmp_path):
    """By the function that workers use; nothing of what the taker was is left."""
    folder, _, states = write(tmp_path / "donor", 192, seed=3)
    taker = trainee_of(tiny_network(seed=9))
    assert began_at(str(folder)) == 192
    begin_from(str(folder), taker, roles_of(taker))
    assert_equal_to(folder, states, taker)


def test_an_exploit_over_s3(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    folder, _, states = write(tmp_path / "donor", 192, seed=3)
    store = Store.at(f"{bucket}/runs/donor/{folder.name}")
    for file in folder.rglob("*.*"):
        store.put(file, file.relative_to(folder).as_posix())
    taker = trainee_of(tiny_network(seed=9))
    assert began_at(store.url) == 192
    begin_from(store.url, taker, roles_of(taker))
    assert_equal_to(folder, states, taker)


def test_a_damaged_donor_is_said(tmp_path):
    folder, _, _ = write(tmp_path, 192)
    taker = trainee_of(tiny_network(seed=9))
    path = folder / "generator.rank0000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"generator.rank0000.safetensors does not match"):
        begin_from(str(folder), taker, roles_of(taker))
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"cannot begin from .*manifest\.json is missing"):
        began_at(str(folder))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="cannot begin from"):
        began_at(str(folder))
    assert began_at("") == 0


def test_adapters_of_another_kind_are_no_start(tmp_path):
    """Two trials of one population may have other ranks: their tensors have other shapes."""
    folder, _, _ = write(tmp_path, 192)
    check_donor_adapters(str(folder), DistillConfig())
    own = replace(DistillConfig(), adapter__rank=4)
    with pytest.raises(UserError, match=r"its adapter.rank is 0, this run's is 4: a run takes up"):
        check_donor_adapters(str(folder), own)
    check_donor_adapters(str(folder), replace(DistillConfig(), adapter__roles="fake"))


def test_adapters_of_another_base_are_named_before_anything_starts(tmp_path):
    """The base is named by its numbers, wherever its files lie."""
    folder, _, _ = write(tmp_path, 192)
    path = folder / "generator_ema" / "model.json"
    stored = ModelDescription.from_json(path.read_text(), "")
    known = dataclasses.replace(stored, notes={"base_sha256": "a" * 64})
    path.write_text(known.to_json())
    run = Store.at(str(tmp_path))
    for notes in ({}, {"base_sha256": "a" * 64}):
        same = dataclasses.replace(stored, notes=notes)
        check_donor_network(run, folder.name, "teacher.pkl", same)
    other = dataclasses.replace(stored, notes={"base_sha256": "b" * 64})
    words = r"begins with a{16}, teacher teacher.pkl's begins with b{16}: its weights have changed"
    with pytest.raises(UserError, match=words):
        check_donor_network(run, folder.name, "teacher.pkl", other)


def test_a_teacher_of_another_network_is_named_before_anything_starts(tmp_path):
    """A run goes on, and a donor is begun from, with the network that the checkpoint is of."""
    folder, _, _ = write(tmp_path, 192)
    run = Store.at(str(tmp_path))
    check_newest(run, "teacher.pkl", ModelDescription("edm", TINY.to_json() | {"dropout": 0.5}))
    others = {
        "an edm network with augment_dim 9: go on": ("edm", TINY.to_json() | {"augment_dim": 9}),
        "an edm network with num_blocks 2: go on": ("edm", TINY.to_json() | {"num_blocks": 2}),
        "an edm2 network: go on with the teacher": ("edm2", TINY_EDM2.to_json()),
    }
    for words, described in others.items():
        expected = rf"{folder.name} is of an edm network.*, teacher teacher\.pkl is {words}"
        with pytest.raises(UserError, match=expected):
            check_newest(run, "teacher.pkl", ModelDescription(*described))
        with pytest.raises(UserError, match=expected):
            check_donor_network(run, folder.name, "teacher.pkl", ModelDescription(*described))
    check_newest(Store.at(str(tmp_path / "none")), "teacher.pkl", ModelDescription("edm2", {}))
