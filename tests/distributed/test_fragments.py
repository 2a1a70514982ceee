"""Checkpoints belong to no stage and no world size: to the bit, whoever wrote and whoever reads.

One start of the processes for each world size: 2 ranks write, 1, 2 and 3 read and write again.
"""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sid_ray.checkpoint import parts
from sid_ray.checkpoint.manifest import MANIFEST, DamagedCheckpointError, Manifest
from sid_ray.denoisers.edm2 import EDM2Denoiser
from sid_ray.distributed import deepspeed_role, fragments
from sid_ray.distributed.fragments import KINDS, MASTER, Fragment, Held, ShardedAverage
from sid_ray.distributed.roles import AdamSettings
from sid_ray.errors import UserError
from sid_ray.tensor_files.stream import flat_slice, stream_safetensors
from sid_ray.weights.folder import ModelDescription, load_model, save_model, write_safetensors
from tests.support import trajectories
from tests.support.checkpoints import (
    load_checkpoint,
    newest_whole,
    read_manifest,
    verify,
    write_checkpoint,
)
from tests.support.nodes import three_nodes
from tests.support.trajectories import (
    CASES,
    EDM2,
    outcome,
    plain_trainee,
    run_ranks,
    sharded_trainee,
)

# Parameters without dimensions, and sizes that neither 2 nor 3 divides.
SMALL = dataclasses.replace(EDM2, model_channels=6, channels_per_head=3, logvar_channels=7)


def small_network() -> EDM2Denoiser:
    torch.manual_seed(0)
    return EDM2Denoiser(SMALL)


CASE = dataclasses.replace(CASES["sida-edm2"], network=small_network)
DESCRIPTION = ModelDescription("edm2", SMALL.to_json(), {"sigma": 2.5})
READERS = {1: ((0, 3),), 2: ((0, 1),), 3: ((3, 2),)}  # by world size: stages
pytestmark = pytest.mark.timeout(600)  # four starts of the processes
WRITTEN, STEPS, SEEN = "checkpoint_000000000024_a", 7, 24


def roles_of(trainee) -> dict:
    return {"fake_score": trainee.fake_score, "generator": trainee.generator}


def write(trainee, folder: Path) -> None:
    write_checkpoint(folder, trainee, roles_of(trainee), DESCRIPTION, "{}")


def made_up(fragment: Fragment, kind: str) -> torch.Tensor:
    """A state that no training made: zeros of both signs among it, any element alone known."""
    name, offset, length = fragment
    start = sum(f"{name} {kind}".encode())
    values = torch.sin(torch.arange(start + offset, start + offset + length).double()).float()
    return torch.where(values.abs() < 0.1, values * 0, values)


def first(rank: int, world_size: int, folder: str) -> None:
    """Two ranks at stage 2, with and without a first moment that is state."""
    for name, beta1 in (("plain", 0.0), ("momentum", 0.9)):
        trajectories.ADAM = AdamSettings(1e-3, beta1, 0.999, 1e-8)
        trainee = sharded_trainee(CASE, 2, 2, 0, world_size)
        for role in roles_of(trainee).values():
            role.load(made_up, STEPS)
        trainee.generator.average_into(trainee.generator_ema, 0.5)
        trainee.images_seen = SEEN
        write(trainee, Path(folder) / name / WRITTEN)
        found = outcome(trainee)
        if rank == 0:
            torch.save(found, f"{folder}/{name}.pt")


def again(rank: int, world_size: int, folder: str) -> None:
    """Reads at other stages and writes what it read."""
    deepspeed_role.PERSISTENT = 100
    trajectories.ADAM = AdamSettings(1e-3, 0.9, 0.999, 1e-8)
    for stages in READERS[world_size]:
        trainee = sharded_trainee(CASE, *stages, 0, world_size)
        load_checkpoint(Path(folder) / "momentum" / WRITTEN, trainee, roles_of(trainee))
        found = outcome(trainee)
        whole = CASE.network().requires_grad_(False)
        trainee.generator.average_into(whole, 0.0)  # the weights that are used
        name = f"{world_size}-{stages[0]}{stages[1]}"
        write(trainee, Path(folder) / name / WRITTEN)
        if rank == 0:
            facts = {"state": found, "working": dict(whole.state_dict())}
            torch.save(facts | {"seen": trainee.images_seen}, f"{folder}/{name}.pt")
        if world_size == 3:
            three_nodes(rank, Path(folder) / "nodes", trainee, roles_of(trainee), DESCRIPTION)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Written by two ranks, read and written again by three, at other stages."""
    folder = tmp_path_factory.mktemp("fragments")
    run_ranks(first, 2, str(folder))
    run_ranks(again, 3, str(folder))
    return folder


@pytest.fixture(scope="module")
def others(folder) -> Path:
    """Read and written again by one rank and by two: starts of their own, for `make slow`."""
    for world_size in (1, 2):
        run_ranks(again, world_size, str(folder))
    return folder


THREE = pytest.param("3-32", "folder", id="3-32")
OTHERS = [
    pytest.param(f"{ranks}-{a}{b}", "others", id=f"{ranks}-{a}{b}", marks=pytest.mark.slow)
    for ranks in (1, 2)
    for a, b in READERS[ranks]
]
NAMES = [THREE, *OTHERS]


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].view(torch.int32), value.view(torch.int32)), name


@pytest.mark.parametrize(("name", "fixture"), NAMES)
def test_any_stage_at_any_world_size_reads_the_bits(request, name, fixture):
    folder = request.getfixturevalue(fixture)
    found = torch.load(folder / f"{name}.pt")
    expected = torch.load(folder / "momentum.pt")
    assert_same(found["state"], expected)
    for parameter, value in found["working"].items():
        master = expected.get(f"G {parameter}/master")
        assert master is None or torch.equal(master, value), parameter
    assert found["seen"] == SEEN


@pytest.mark.parametrize(("name", "fixture"), [*NAMES, ("plain", "folder")])
def test_plain_torch_reads_what_any_of_them_wrote(request, monkeypatch, name, fixture):
    folder = request.getfixturevalue(fixture)
    adam = AdamSettings(1e-3, 0.0 if name == "plain" else 0.9, 0.999, 1e-8)
    monkeypatch.setattr(trajectories, "ADAM", adam)
    trainee = plain_trainee(CASE)
    load_checkpoint(folder / name / WRITTEN, trainee, roles_of(trainee))
    expected = torch.load(folder / ("plain.pt" if name == "plain" else "momentum.pt"))
    found = outcome(trainee)
    assert_same(found, expected)
    assert trainee.generator.optimizer_steps() == trainee.fake_score.optimizer_steps() == STEPS


def test_a_first_moment_that_is_not_state_is_not_stored(folder):
    for name, kinds in (("plain", ["master", "exp_avg_sq"]), ("momentum", list(KINDS))):
        manifest = verify(folder / name / WRITTEN)
        assert manifest.kinds == {"fake_score": kinds, "generator": kinds}


def test_each_rank_writes_its_share_and_no_more(folder):
    sizes = [path.stat().st_size for path in (folder / "3-32" / WRITTEN).glob("*.rank*")]
    assert len(sizes) == 6
    assert max(sizes) < 1.5 * min(sizes), "a whole role would be three times a share"


def test_the_averaged_generator_is_a_network_by_itself(folder):
    network, description = load_model(folder / "3-32" / WRITTEN / "generator_ema")
    assert description == DESCRIPTION
    expected = torch.load(folder / "momentum.pt")
    for name, value in network.state_dict().items():
        assert torch.equal(value, expected[f"EMA {name}"]), name


@pytest.mark.parametrize("harm", ["missing", "flipped"])
def test_a_damaged_part_of_another_rank_is_named(folder, tmp_path, harm):
    copied = tmp_path / WRITTEN
    copied.mkdir()
    for path in (folder / "3-32" / WRITTEN).iterdir():
        (copied / path.name).symlink_to(path)
    part = copied / "generator.rank0001.safetensors"
    content = bytearray(part.read_bytes())
    part.unlink()
    if harm == "flipped":
        content[-5] ^= 1
        part.write_bytes(content)
    newest, (line,) = newest_whole(tmp_path)
    assert newest is None
    assert f"{WRITTEN}: {part.name} {'is missing' if harm == 'missing' else 'does not'}" in line


def seen_by(folder: Path) -> list[dict]:
    return [json.loads((folder / "nodes" / f"rank{rank}.json").read_text()) for rank in range(3)]


def test_a_wish_of_one_rank_is_heard_by_all(folder):
    assert [seen["wish"] for seen in seen_by(folder)] == [2, 2, 2]
    assert [seen["stored"] for seen in seen_by(folder)] == [24, 24, 24]


def test_what_only_the_nodes_disks_had_is_uploaded_and_gone_on_from(folder):
    for rank, seen in enumerate(seen_by(folder)):
        images_seen, value, local = seen["after a crash"]
        assert (images_seen, value) == (48, 48.0)
        assert local
        assert all(f"rank{(rank + 1) % 3:04d}" in name or "ema" in name for name in local)
    verify(folder / "nodes" / "run" / "checkpoint_000000000048_a")


def test_with_a_node_goes_what_only_its_disk_had_and_the_one_before_is_used(folder):
    for seen in seen_by(folder):
        assert seen["after a lost node"][:2] == [48, 48.0]
    told = seen_by(folder)[0]["told"]
    assert any("checkpoint_000000000072_a is on local disks only, without" in t for t in told)


def test_parts_that_leave_a_hole_are_named(folder):
    path = folder / "3-32" / WRITTEN
    trainee = plain_trainee(CASE)
    table = read_manifest(path).fragments["generator"]
    rank1 = {name: rows for name, rows in table.items() if "rank0001" in name}
    with pytest.raises(DamagedCheckpointError, match=r"hold 0 of \d+ elements of unet"):
        parts.Parts(path.joinpath, rank1, KINDS, trainee.generator.shapes)


def test_a_changed_table_is_noticed(folder, tmp_path):
    text = (folder / "3-32" / WRITTEN / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace("rank0001", "rank0000"))
    with pytest.raises(DamagedCheckpointError, match="its own checksum"):
        read_manifest(tmp_path)


def test_checkpoints_of_schema_1_are_read(folder, tmp_path, monkeypatch):
    state = torch.load(folder / "momentum.pt")
    for role, short in (("fake_score", "f "), ("generator", "G ")):
        tensors = {k.removeprefix(short): v for k, v in state.items() if k.startswith(short)}
        write_safetensors(tmp_path / f"{role}.safetensors", tensors)
    average = {k.removeprefix("EMA "): v for k, v in state.items() if k.startswith("EMA")}
    save_model(tmp_path / "generator_ema", average, DESCRIPTION)
    values = {"schema": 1, "images_seen": SEEN, "config": "{}", "files": {}}
    values["optimizer_steps"] = {"fake_score": STEPS, "generator": STEPS}
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    assert isinstance(read_manifest(tmp_path), Manifest)
    monkeypatch.setattr(trajectories, "ADAM", AdamSettings(1e-3, 0.9, 0.999, 1e-8))
    trainee = plain_trainee(CASE)
    load_checkpoint(tmp_path, trainee, roles_of(trainee))
    assert_same(outcome(trainee), state)


def test_an_average_of_another_teacher_is_refused(folder):
    trainee = plain_trainee(CASE)
    trainee.generator.module.unet.emb_fourier.phases.add_(1)
    path = folder / "3-32" / WRITTEN / "generator_ema" / "model.safetensors"
    with pytest.raises(UserError, match="phases is not that of the teacher"):
        parts.load_average(ShardedAverage(trainee.generator), path)


def test_streamed_files_are_safetensors_and_any_range_of_them_is_read(tmp_path):
    values = {
        "matrix": torch.randn(5, 3, 2),
        "scalar": torch.tensor(-0.0),
        "half": torch.randn(7).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
    }
    shapes = {name: (value.shape, value.dtype) for name, value in values.items()}
    path = tmp_path / "file.safetensors"
    stream_safetensors(path, shapes, values.items(), {"note": "text"})
    found = load_file(path)
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"note": "text"}
        assert flat_slice(file, "scalar", 0, 1).shape == (1,)
        for start in range(30):
            for length in range(1, 31 - start):
                expected = values["matrix"].flatten()[start : start + length]
                assert torch.equal(flat_slice(file, "matrix", start, length), expected)
    with pytest.raises(ValueError, match="is not matrix's"):
        stream_safetensors(path, shapes, [("half", values["half"])] * 4)


@pytest.mark.parametrize("at_once", [1, 7, 12, 1 << 20])
def test_small_tensors_are_made_whole_together(monkeypatch, at_once):
    """In their order, each once, by collectives of at most so many elements or of one tensor."""
    shapes, sent = {"a": (2, 3), "b": (), "c": (4,), "d": (0,), "e": (5, 4)}, []
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    whole = {name: value.clone() for name, value in values.items()}
    held = [Held(Fragment(k, 0, v.numel()), {MASTER: v.flatten()}) for k, v in values.items()]
    monkeypatch.setattr(fragments, "SUMMED_AT_ONCE", at_once)
    monkeypatch.setattr(fragments, "world", lambda: (0, 2))  # the other rank holds nothing
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: sent.append(len(flat)))
    found = list(fragments.whole_tensors(shapes, held, (MASTER,), torch.device("cpu")))
    assert [name for name, _, _ in found] == list(shapes)
    for name, _, value in found:
        assert torch.equal(value, whole[name]) and value.shape == whole[name].shape
    assert sum(sent) == 6 + 1 + 4 + 0 + 20
    assert all(size <= at_once or size in (6, 4, 20) for size in sent)
    assert all(first + then > at_once for first, then in pairwise(sent))
