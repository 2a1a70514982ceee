"""Every path of a run on a GPU, rehearsed without one: devices, types, and what the host waits for.

Fake tensors on a CUDA device that computes nothing (support/fake_cuda, docs/rehearsal.md): wrong
devices and types fail as on a GPU, and each time that the host would wait for the device is seen.
All cases run in one process. The full product of what is combined here: benchmarks/rehearsal.py.
"""

from __future__ import annotations

import pytest

from sid_ray.denoisers.registry import families, family_of
from sid_ray.metrics.extractors import NAMES
from sid_ray.objectives.spec import ObjectiveSpec, objective_specs
from tests.support.fake_cuda.cases import ITERATION, NETWORKS, PASS_PARTS, Case
from tests.support.fake_cuda.run import rehearse

pytestmark = pytest.mark.timeout(900)  # one process rehearses all cases for the first test

# Times that the host may wait for the device. These numbers may only go down.
IN_PASSES, IN_AN_ITERATION = 0, 0
OFFLOADED = 2  # in an iteration: one a role, whose optimizer steps in host memory
# In the passes of one that offloads at stage 2 in two passes: for each of 13 parameters that this
# rank steps DeepSpeed waits for the copies of those before, in both passes of both roles.
OFFLOADED_PASSES = 2 * (2 * 13 - 1)
IN_A_REPORT, IN_A_SNAPSHOT = 1, 2

RANKS = 8
AUGMENT, STEPS = {"objective__augment": 0.12}, {"objective__num_steps": 2}
OVERLAP = {"resources__overlap_comm": True}
GUIDED = {"objective__kappa1": 1.5, "objective__kappa4": 2.0} | STEPS


def train(family: str, objective: str, precision: str = "float32", **more: object) -> Case:
    return Case("train", family, objective=objective, precision=precision, **more)  # type: ignore[arg-type]


PLAIN = [
    train("edm", "sid", recompute=True, iterations=2, config=AUGMENT),
    train("edm", "sida", "float16", variant="adm"),
    train("edm", "vsd", "bfloat16", passes="halves", variant="ncsnpp"),
    train("edm2", "sid", "float16", recompute=True, config=STEPS),
    train("edm2", "sida", passes="halves"),
    Case("run", "edm2", "levels", "vsd", "bfloat16", passes="packed"),
    train("stable-diffusion", "lsg", "bfloat16", config=GUIDED),
    train("stable-diffusion", "sida", variant="velocity"),
    train("stable-diffusion", "sid", "float16", recompute=True),
    train("stable-diffusion", "vsd", passes="halves"),
    train("sd3", "sid", "bfloat16", recompute=True, config=STEPS),
    train("sd3", "sida", passes="halves", variant="3.5"),
    train("sd3", "lsg", "float16", config=GUIDED),
    train("sana", "sid", "float16", recompute=True, variant="sprint"),
    train("sana", "sida", "bfloat16", passes="halves", config=GUIDED),
    train("sana", "vsd"),
    train("flux", "sid", "float16", passes="halves", variant="schnell"),
    train("flux", "sida", recompute=True),
    train("flux", "lsg", "bfloat16", config=GUIDED),
    train("sdxl", "lsg", "bfloat16", recompute=True, config=GUIDED),
    train("sdxl", "sida", passes="halves", variant="velocity"),
    train("sdxl", "sid", "float16"),
]
SHARED = [
    train("edm2", "sid", world_size=RANKS, stage=0),
    train("edm", "sida", world_size=RANKS, stage=1, recompute=True),
    train("edm2", "sida", "float16", world_size=RANKS, stage=2),
    train("edm2", "vsd", world_size=RANKS, stage=3, teacher_stage=3, iterations=2),
    train("sana", "sida", world_size=RANKS, stage=3, teacher_stage=3, iterations=2),
    train("edm", "sid", world_size=RANKS, stage=2, offload=True),
    train("edm", "sid", world_size=RANKS, stage=2, offload=True, passes="two"),
    train("edm", "sid", world_size=RANKS, stage=2, passes="two", config=OVERLAP),
]
OTHERS = [
    Case("sample", "edm"),
    Case("sample", "edm2", precision="float16"),
    Case("sample", "stable-diffusion"),
    Case("sample", "sd3"),
    Case("sample", "sana", precision="bfloat16"),
    Case("sample", "flux"),
    Case("sample", "sdxl"),
    Case("text", "stable-diffusion", precision="bfloat16"),
    Case("text", "sdxl", precision="bfloat16"),
    Case("codec", "edm2", precision="bfloat16"),
    Case("codec", "stable-diffusion"),
    *(Case("text", name, precision="bfloat16") for name in ("sd3", "sana", "flux")),
    Case("codec", "sd3", precision="bfloat16"),
    Case("codec", "sana", precision="float16"),
    Case("codec", "flux"),
    Case("codec", "sdxl"),
    *(Case("features", variant=name) for name in NAMES if name not in ("inception", "lite0-320")),
]
PLANTED = {
    "a device left out": "FakeTensorDeviceMismatch",
    "a level on the host": "FakeTensorDeviceMismatch",
    "a weight of another type": "bfloat16, float32",
    "an operation of CPUs": "no kernel for CUDA",
    "a value read": "_local_scalar_dense",
    "a copy that is waited for": "copy to the device",
}
# What is made once in a process, such as a table of noise levels, is made by the first of these.
ALL = [*OTHERS, *PLAIN, *SHARED, *(Case("fault", variant=name) for name in PLANTED)]


@pytest.fixture(scope="module")
def rehearsed():
    return {case.name: found for case, found in zip(ALL, rehearse(ALL), strict=True)}


@pytest.mark.parametrize("case", [*PLAIN, *SHARED, *OTHERS], ids=lambda case: case.name)
def test_what_a_gpu_would_run_fits_its_devices_and_types(rehearsed, case):
    found = rehearsed[case.name]
    assert found.error == ""
    assert found.faults == {}
    assert found.parts


@pytest.mark.parametrize("case", [*PLAIN, *SHARED], ids=lambda case: case.name)
def test_the_host_does_not_wait_for_the_device(rehearsed, case):
    found = rehearsed[case.name]
    passing = OFFLOADED_PASSES if case.offload and case.passes == "two" else IN_PASSES
    assert sum(found.waits(*PASS_PARTS).values()) <= passing, found.waits(*PASS_PARTS)
    bound = passing + OFFLOADED if case.offload else IN_AN_ITERATION
    assert sum(found.waits(*ITERATION).values()) <= bound, found.waits(*ITERATION)
    # Something was counted at all.
    assert found.total("launches", *PASS_PARTS) > 500 and found.total("to_device", "draws") > 2


def test_at_stage_3_networks_come_to_the_device_parameter_by_parameter(rehearsed):
    """None of the three is ever whole there, and at the other stages each is there once."""
    for case in SHARED:
        whole = rehearsed[case.name].total("whole", "build")
        network = family_of(case.family).build(NETWORKS[case.family, case.variant])
        sizes = [parameter.numel() for parameter in network.parameters()]
        if case.teacher_stage == 3:
            assert whole == max(sizes), case.name
        else:
            assert 2 * sum(sizes) <= whole <= 3 * sum(sizes), case.name


def test_reports_and_snapshots_wait_once_or_twice(rehearsed):
    """A report for its means, a snapshot for each role's number of steps."""
    (found,) = (rehearsed[case.name] for case in PLAIN if case.path == "run")
    assert sum(found.waits("report").values()) <= IN_A_REPORT, found.waits("report")
    assert sum(found.waits("snapshot").values()) <= IN_A_SNAPSHOT, found.waits("snapshot")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(rehearsed, name):
    found = rehearsed[Case("fault", variant=name).name]
    seen = [found.error, *found.faults, *found.waits(*found.parts)]
    assert any(PLANTED[name] in text for text in seen), seen


def test_every_objective_family_and_precision_is_rehearsed():
    """What is added to a registry fails here until somebody rehearses it: each objective with each
    kind of noise levels, and each family with a discriminator, in each precision and split.
    """
    trained = [*PLAIN, *SHARED]
    ours = {n: f for n, f in families().items() if type(f).__module__.startswith("sid_ray.")}
    for name, family in ours.items():  # other tests of this process may have added theirs
        assert (name, "") in NETWORKS, f"say in fake_cuda/cases.py what a tiny {name} is"
        own = [case for case in trained if case.family == name]
        alike = {n for n, other in ours.items() if isinstance(family.noise, type(other.noise))}
        losses = {case.objective for case in trained if case.family in alike}
        assert losses >= {spec.name for spec in fitting(family.reads_text)}
        judged = {spec.name for spec in objective_specs() if spec.discriminator}
        assert {case.objective for case in own} >= judged, "its logits"
        assert {case.precision for case in own} >= set(family.precisions)
        assert "halves" in {case.passes for case in own} and any(c.recompute for c in own)
        assert any(case.path == "sample" and case.family == name for case in OTHERS)
        assert family.latents is None or ("codec", name) in {(c.path, c.family) for c in OTHERS}
    assert {case.stage for case in SHARED} == {0, 1, 2, 3}


def fitting(reads_text: bool) -> list[ObjectiveSpec]:
    """The objectives that a family can be trained with."""
    return [spec for spec in objective_specs() if reads_text or "text" not in spec.needs]
