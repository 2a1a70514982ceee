"""Activation checkpointing and half precision under ZeRO. One start of two processes, slow."""

import pytest
import torch

from sid_ray.distributed import deepspeed_role
from sid_ray.distributed.roles import AdamSettings
from tests.support import trajectories
from tests.support.trajectories import (
    CASES,
    COLUMNS,
    GROUP,
    MICRO_BATCH,
    Case,
    changed,
    errors,
    outcome,
    plain_trainee,
    run_ranks,
    sharded_trainee,
    train,
)

RANKS, ITERATIONS = 2, 2
# Stages of fake score, generator and teacher.
RECOMPUTED = [("sida-edm", (0, 1, 0)), ("sida-edm", (2, 3, 3)), ("sida-edm2", (3, 2, 3))]
BFLOAT16 = {
    "sida-edm": [(1, 2, 0), (3, 1, 3)],
    "sida-edm2": [(2, 1, 0), (2, 3, 0)],
}
BOTH = [(name, stages) for name in BFLOAT16 for stages in BFLOAT16[name]]
ADAM = AdamSettings(1e-3, 0.0, 0.999, 100.0)  # steps follow the gradient: rounding stays rounding
# Stages 1 and 2 compute each pass on the same samples in the same way, and add up in float32.
# Stage 3 has its weights elsewhere in memory, where other kernels round otherwise: by as much as
# plain torch does on passes of other sizes, times this.
TOLERANCE, STAGE_3_FACTOR = 1e-5, 3.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def narrow(name: str, precision: str = "bfloat16") -> Case:
    """With a teacher of its own: the difference of equal networks would be nothing but rounding."""
    return changed(CASES[name], precision=precision, teacher_noise=0.5)


def work(rank: int, world_size: int, folder: str) -> None:
    deepspeed_role.PERSISTENT = 1000

    def run(case, stages):
        trainee = sharded_trainee(case, *stages, world_size)
        train(case, trainee, rank, world_size, ITERATIONS)
        return outcome(trainee)

    found = {}
    for name, stages in RECOMPUTED:
        kept, again = (run(changed(CASES[name], recompute=on), stages) for on in (False, True))
        found[name, stages] = [k for k in kept if not torch.equal(kept[k], again[k])]
    trajectories.ADAM = ADAM
    for name, stages in BOTH:
        found[name, stages, "bfloat16"] = run(narrow(name), stages)
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("settings")
    run_ranks(work, RANKS, str(folder))
    return torch.load(folder / "found.pt")


@pytest.fixture(scope="module")
def plain():
    """Plain torch in bfloat16, in passes of another size too, and in float32."""
    torch.set_num_threads(1)
    found, theirs, trajectories.ADAM = {}, trajectories.ADAM, ADAM
    for name in BFLOAT16:
        for kind in ("bfloat16", "other passes", "float32"):
            case = narrow(name, "float32" if kind == "float32" else "bfloat16")
            trainee = plain_trainee(case)
            passes = GROUP if kind == "other passes" else MICRO_BATCH
            train(case, trainee, 0, 1, ITERATIONS, passes)
            found[name, kind] = outcome(trainee)
    trajectories.ADAM = theirs
    return found


@pytest.mark.parametrize("run", RECOMPUTED, ids=str)
def test_activation_checkpointing_is_the_same_to_the_bit(results, run):
    assert results[run] == []


@pytest.mark.parametrize("run", BOTH, ids=str)
def test_bfloat16_networks_equal_plain_torch_with_bfloat16_networks(results, plain, run):
    name, stages = run
    found = errors(results[name, stages, "bfloat16"], plain[name, "bfloat16"])
    rounding = errors(plain[name, "other passes"], plain[name, "bfloat16"])
    print(run, {column: f"{found[column]:.1e} {rounding[column]:.1e}" for column in COLUMNS})
    for column in COLUMNS[:-1]:
        limit = STAGE_3_FACTOR * rounding[column] if 3 in stages else TOLERANCE
        assert found[column] < limit, (column, found, rounding)


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_is_another_precision_and_weights_stay_float32(plain, name):
    narrow, wide = plain[name, "bfloat16"], plain[name, "float32"]
    found = errors(narrow, wide)
    assert found["exp_avg_sq"] > 1e-3, "the networks' bodies are not narrow"
    assert all(value.dtype == torch.float32 for value in narrow.values())
