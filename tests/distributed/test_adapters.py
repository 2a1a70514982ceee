"""Adapters over one base at every ZeRO stage equal plain torch as exactly as whole networks do.

Groups are split over passes, dropout is on, and five groups are more for one rank than for another.
One start of two processes; three ranks are kept for `make slow`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sid_ray.checkpoint.manifest import MANIFEST
from sid_ray.denoisers.adapter_names import is_adapters
from sid_ray.denoisers.adapters import Adapter
from sid_ray.weights.folder import ModelDescription
from tests.distributed.test_fragments import assert_same
from tests.distributed.test_zero3 import TOLERANCE
from tests.support.checkpoints import load_checkpoint, write_checkpoint
from tests.support.trajectories import (
    CASES,
    Case,
    adapted,
    changed,
    errors,
    outcome,
    plain_trainee,
    run_ranks,
    sharded_trainee,
    train,
)

SAVED_AFTER, ITERATIONS = 1, 2
ADAPTERS = {
    "sida-edm": Adapter(3, 6.0, ("conv0", "qkv", "proj", "affine")),
    "sida-edm2": Adapter(3, 6.0, ("*",)),
}
STAGES = {  # (stage, whether moments are in CPU memory) of each
    "sida-edm": {"0": (0, False), "2": (2, False)},
    "sida-edm2": {"1": (1, False), "2": (2, True)},
}
WRITTEN = "checkpoint_000000000040_a"
pytestmark = pytest.mark.timeout(600)


def case_of(name: str) -> Case:
    return adapted(CASES[name], ADAPTERS[name])


def roles_of(trainee) -> dict:
    return {"fake_score": trainee.fake_score, "generator": trainee.generator}


def shares_its_base(trainee, case: Case) -> bool:
    """Whether the engines' networks still have the teacher's tensors, and train none of them."""
    held = {value.data_ptr() for value in case.base.state_dict().values()}
    for role in roles_of(trainee).values():
        if not all(is_adapters(name) for name, _ in role.module.named_parameters()):
            return False
        if not {value.data_ptr() for value in role.module.buffers()} >= held:
            return False
    return True


def write(trainee, folder: Path, name: str) -> None:
    description = ModelDescription("edm2", {}, {"sigma": 2.5}, {}, ADAPTERS[name].to_json())
    write_checkpoint(folder, trainee, roles_of(trainee), description, "{}")


def work(rank: int, world_size: int, folder: str) -> None:
    for name in ADAPTERS:
        case = case_of(name)
        before = {key: value.clone() for key, value in case.base.state_dict().items()}
        for stage, (number, offload) in STAGES[name].items():
            trainee = sharded_trainee(case, number, number, 0, world_size, offload=offload)
            train(case, trainee, rank, world_size, SAVED_AFTER)
            place = Path(folder) / name / stage / WRITTEN
            write(trainee, place, name)
            saved = outcome(trainee)
            train(case, trainee, rank, world_size, ITERATIONS - SAVED_AFTER)
            found = {"saved": saved, "end": outcome(trainee)}
            resumed = sharded_trainee(case, number, number, 0, world_size, offload=offload)
            load_checkpoint(place, resumed, roles_of(resumed))
            train(case, resumed, rank, world_size, ITERATIONS - SAVED_AFTER)
            found |= {"resumed": outcome(resumed), "shared": shares_its_base(trainee, case)}
            base = case.base.state_dict()
            found["base"] = all(torch.equal(before[key], base[key]) for key in before)
            if rank == 0:
                torch.save(found, place.parent / "found.pt")


def read(rank: int, world_size: int, folder: str, writer: str) -> None:
    """Goes on, at another stage, with what another number of ranks wrote."""
    for name in ADAPTERS:
        case = case_of(name)
        trainee = sharded_trainee(case, 1, 0, 0, world_size)
        load_checkpoint(Path(writer) / name / "2" / WRITTEN, trainee, roles_of(trainee))
        found = {"saved": outcome(trainee)}
        train(case, trainee, rank, world_size, ITERATIONS - SAVED_AFTER)
        found["end"] = outcome(trainee)
        if rank == 0:
            torch.save(found, f"{folder}/{name}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    run_ranks(work, 2, str(folder))
    return folder


@pytest.fixture(scope="module", params=ADAPTERS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def plain(name) -> dict:
    torch.set_num_threads(1)
    case = case_of(name)
    trainee = plain_trainee(case)
    train(case, trainee, 0, 1, ITERATIONS)
    return outcome(trainee)


def check(found: dict, plain: dict) -> None:
    for kind, error in errors(found, plain).items():
        assert error < TOLERANCE[kind], kind


def test_every_stage_equals_plain_torch(folder, name, plain):
    for stage in STAGES[name]:
        found = torch.load(folder / name / stage / "found.pt")
        check(found["end"], plain)
        assert_same(found["resumed"], found["end"])
        assert found["shared"]
        assert found["base"], "nothing of a run may write to the base"


def test_plain_torch_goes_on_with_what_two_ranks_wrote(folder, name, plain):
    case = case_of(name)
    trainee = plain_trainee(case)
    place = folder / name / "2" / WRITTEN
    load_checkpoint(place, trainee, roles_of(trainee))
    assert_same(outcome(trainee), torch.load(place.parent / "found.pt")["saved"])
    train(case, trainee, 0, 1, ITERATIONS - SAVED_AFTER)
    check(outcome(trainee), plain)


@pytest.mark.slow
def test_three_ranks_go_on_with_what_two_wrote(folder, name, plain, tmp_path):
    run_ranks(read, 3, str(tmp_path), str(folder))
    found = torch.load(tmp_path / f"{name}.pt")
    assert_same(found["saved"], torch.load(folder / name / "2" / "found.pt")["saved"])
    check(found["end"], plain)


def test_activations_computed_again_see_their_own_adapter():
    """Fake score and generator are called in turn over one base: no bit may differ."""
    torch.set_num_threads(1)
    found = []
    for recompute in (False, True):
        case = changed(CASES["sida-edm2"], recompute=recompute)
        case = adapted(case, ADAPTERS["sida-edm2"])
        trainee = plain_trainee(case)
        train(case, trainee, 0, 1, 1)
        found.append(outcome(trainee))
    assert_same(*found)


def test_a_checkpoint_is_adapters_alone(folder, name):
    place = folder / name / "2" / WRITTEN
    case = case_of(name)
    trained = sum(value.numel() for value in case.network().parameters())
    stored = sum(path.stat().st_size for path in place.rglob("*.safetensors"))
    # Weights and second moments of two roles, and the average: five times four bytes a number.
    assert stored < 20 * trained + 100_000
    assert (place / MANIFEST).exists()
