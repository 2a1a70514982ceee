"""DeepSpeed at every stage equals plain torch, and its state belongs to no world size."""

import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed

from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network
from sid_ray.denoisers.registry import family_of
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed.deepspeed_role import (
    DeepSpeedRole,
    check_no_stale_lock,
    deepspeed_config,
    zero_config,
)
from sid_ray.distributed.roles import AdamSettings, RoleState, TorchRole, Trainee, UpdateRules
from sid_ray.groups import GroupPlan
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.training.draws import draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.types import Condition
from tests.conftest import relative_error
from tests.support.networks import LabelledNoise, UniformLabels, tiny_edm2, tiny_network
from tests.support.trajectories import run_ranks
from tests.training.test_step import trainee_of

ITERATIONS, SAVED_AFTER, BATCH, GROUP = 3, 1, 24, 8
STAGES = {2: (0, 1, 2), 3: (2,)}  # by world size; 3 groups on 2 ranks: one of them pads
EDM2_TINY = EDM2Network(
    img_resolution=8,
    img_channels=4,
    label_dim=4,
    model_channels=64,
    channel_mult=(1,),
    num_blocks=1,
    attn_resolutions=(8,),
)
ADAM = AdamSettings(1e-3, 0.0, 0.999, 1e-8)
RULES = {
    "clip": UpdateRules(clip_value=0.1),
    "replace": UpdateRules(replace_nonfinite=True),
    "replace and clip": UpdateRules(replace_nonfinite=True, clip_value=0.1),
    "constrain first": UpdateRules(family_of("edm2").constrain, constrain_first=True),
}
OFFLOADED = ("replace and clip", "constrain first")  # the others too in test_zero3.py
SOFT_ADAM = AdamSettings(1.0, 0.0, 0.999, 1.0)  # steps follow the size of the gradient ...
PASSES = 2  # an update: weights that are normalised before each pass change within it
RULE_TOLERANCE = 1e-4  # ... so that rounding stays rounding
# Float32, other orders of summation; Adam with beta1 = 0 turns the rounding of small gradients
# into parts of a step. The keys' third of qkv.bias has no true gradient at all: left out.
TOLERANCE = 1e-3


def iterate(trainee: Trainee, plan: GroupPlan, rank: int, iterations: int) -> Sums:
    draws, sums = draws_of(UniformLabels(), plan, 0, torch.device("cpu")), Sums()
    for _ in range(iterations):
        settings = StepSettings(plan, rank, 1000, 0.05)
        step(trainee, SiD(EDMSchedule()), settings, draws, sums)
    return sums


def states(trainee: Trainee) -> dict[str, RoleState]:
    return {"fake_score": trainee.fake_score.state(), "generator": trainee.generator.state()}


def deepspeed_trainee(stage: int, plan: GroupPlan) -> Trainee:
    def role() -> DeepSpeedRole:
        built = DeepSpeedRole(tiny_network(), ADAM, stage, plan.passes_a_rank)
        built.module.requires_grad_(False)
        return built

    frozen = [tiny_network().requires_grad_(False) for _ in range(2)]
    return Trainee(frozen[0], role(), role(), frozen[1])


def edm2_roles(role_of) -> dict:
    """Three steps on EDM2 weights that start far from unit rows: the rule must hold after each."""
    torch.manual_seed(0)
    network = EDM2Denoiser(EDM2_TINY)
    role = role_of(network.requires_grad_(True), family_of("edm2").constrain)
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        x, sigma = torch.randn(4, 4, 8, 8, generator=generator), torch.full((4,), 1.5)
        level = EDMSchedule().level(sigma)
        loss = (role.network(x, level, Condition(torch.eye(4))).x0 ** 2).sum()
        # Ranks compute the same samples: their sum would count them once a rank.
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        role.backward(loss / ranks)
        assert role.update()
    return {"state": role.state(), "working": role.module.state_dict()}


def poison(module: torch.nn.Module) -> list:
    """One gradient is not a number, one is infinite; in hooks, as stage 3 has no whole weights."""

    def infinite(gradient: torch.Tensor) -> torch.Tensor:
        changed = gradient.clone()
        changed[0, 0] = torch.inf
        return changed

    named = dict(module.named_parameters())
    return [
        named["unet.out_gain"].register_hook(lambda gradient: gradient * torch.nan),
        named["unet.emb_noise.weight"].register_hook(infinite),
    ]


def rule_steps(name: str, role_of: Callable[..., TorchRole | DeepSpeedRole], ranks: range) -> dict:
    """Two steps under one of RULES on the samples of these ranks, out of two, in two passes."""
    role = role_of(tiny_edm2().requires_grad_(True), RULES[name])
    applied, before = [], []
    for number in range(2):
        for turn in range(PASSES):
            role.prepare()
            before.append({k: v.clone() for k, v in role.module.state_dict().items()})
            for rank in ranks:
                generator = torch.Generator().manual_seed(2 * number + rank + 4 * turn)
                x, level = (
                    torch.randn(2, 1, 8, 8, generator=generator),
                    EDMSchedule().level(torch.ones(2)),
                )
                # Ranks' gradients nearly cancel: clipped before they are summed, they would differ.
                sign = 1.0 if rank else -1.1
                loss = sign * (role.network(x, level, Condition(torch.eye(10)[:2])).x0 ** 2).sum()
                hooks = poison(role.module) if rank == 0 and "replace" in name else []
                role.backward(loss / PASSES)
                for hook in hooks:
                    hook.remove()
        applied.append(role.update())
    return {"state": role.state(), "applied": applied, "before": before}


def split_sida(trainee: Trainee, plan: GroupPlan, rank: int) -> dict[str, RoleState]:
    """Two iterations of SiDA on groups that do not fit into one pass."""
    draws = draws_of(LabelledNoise(), plan, 0, torch.device("cpu"))
    objective = SiDA(EDMSchedule(), alpha=1.0, adversarial_weight=1.0, discriminator_weight=100.0)
    for _ in range(2):
        step(trainee, objective, StepSettings(plan, rank, 1000, 0.05), draws, Sums())
    return states(trainee)


def split_plan(world_size: int) -> GroupPlan:
    return GroupPlan(BATCH, GROUP, GROUP // 2, world_size)


def plain_role(module: torch.nn.Module, constrain) -> TorchRole:
    return TorchRole(module, ADAM, UpdateRules(constrain))


def nan_is_skipped(trainee: Trainee, plan: GroupPlan, rank: int) -> None:
    """One rank's loss is not finite: no rank may change a weight, and the next step works."""
    before = states(trainee)["generator"]
    draws = draws_of(UniformLabels(), plan, 0, torch.device("cpu"))

    def poisoned(stream, images_seen, micro_step):
        draw, batch = draws(stream, images_seen, micro_step)
        if rank == 0:
            draw = draw._replace(noise=draw.noise * torch.inf)
        return draw, batch

    sums = Sums()
    settings = StepSettings(plan, rank, 1000, 0.05)
    step(trainee, SiD(EDMSchedule()), settings, poisoned, sums)
    assert sums.values["skipped_updates"].item() == 2, "every rank skips both updates"
    after = states(trainee)["generator"]
    assert after.optimizer_steps == before.optimizer_steps
    assert all(torch.equal(before.tensors[k], after.tensors[k]) for k in before.tensors)
    assert iterate(trainee, plan, rank, 1).values["skipped_updates"].item() == 0


def work(rank: int, world_size: int, folder: str) -> None:
    plan = GroupPlan(BATCH, GROUP, GROUP, world_size)
    for stage in STAGES[world_size]:
        trainee = deepspeed_trainee(stage, plan)
        iterate(trainee, plan, rank, SAVED_AFTER)
        saved = states(trainee)
        iterate(trainee, plan, rank, ITERATIONS - SAVED_AFTER)
        ended = states(trainee)

        resumed = deepspeed_trainee(stage, plan)
        resumed.fake_score.load_state(saved["fake_score"])
        resumed.generator.load_state(saved["generator"])
        resumed.images_seen = SAVED_AFTER * BATCH
        loaded = states(resumed)
        iterate(resumed, plan, rank, ITERATIONS - SAVED_AFTER)
        if rank == 0:
            results = {"saved": saved, "loaded": loaded, "ended": ended, "resumed": states(resumed)}
            torch.save(results, f"{folder}/stage{stage}.pt")
        else:
            states(resumed)  # a collective
        nan_is_skipped(resumed, plan, rank)

        def role_of(module, constrain, stage=stage):
            return DeepSpeedRole(module, ADAM, stage, 1, UpdateRules(constrain))

        edm2 = edm2_roles(role_of)
        if rank == 0:
            torch.save(edm2, f"{folder}/edm2_{stage}.pt")
        if world_size == 2:
            more_of_two(rank, stage, folder)


def more_of_two(rank: int, stage: int, folder: str) -> None:
    """What is worth comparing on two processes only."""

    def role_of(module: torch.nn.Module, rules: UpdateRules) -> DeepSpeedRole:
        return DeepSpeedRole(module, SOFT_ADAM, stage, PASSES, rules)

    def offloaded(module: torch.nn.Module, rules: UpdateRules) -> DeepSpeedRole:
        return DeepSpeedRole(module, SOFT_ADAM, stage, PASSES, rules, offload=True)

    found = {name: rule_steps(name, role_of, range(rank, rank + 1)) for name in RULES}
    for name in OFFLOADED if stage else ():
        found[f"{name}, offloaded"] = rule_steps(name, offloaded, range(rank, rank + 1))
    if stage == 2:
        plan = split_plan(2)
        found["split sida"] = split_sida(deepspeed_trainee(stage, plan), plan, rank)
    if rank == 0:
        torch.save(found, f"{folder}/more_{stage}.pt")


# A start of processes is most of the time; three ranks are kept for `make slow`.
THREE = pytest.param(3, marks=pytest.mark.slow, id="3 ranks")


@pytest.fixture(scope="module", params=[pytest.param(2, id="2 ranks"), THREE])
def results(request, tmp_path_factory):
    """Every stage in one start of the processes."""
    folder = tmp_path_factory.mktemp("engine")
    run_ranks(work, request.param, str(folder))

    def load(name: str) -> dict:
        path = folder / f"{name}.pt"
        return torch.load(path, weights_only=False) if path.exists() else {}

    return {
        stage: load(f"stage{stage}")
        | {"edm2": load(f"edm2_{stage}"), "more": load(f"more_{stage}")}
        for stage in STAGES[request.param]
    }


@pytest.fixture(scope="module")
def plain():
    torch.set_num_threads(1)
    trainee = trainee_of(tiny_network())
    iterate(trainee, GroupPlan(BATCH, GROUP, GROUP, 1), 0, ITERATIONS)
    return states(trainee)


def compare(found: RoleState, expected: RoleState, tolerance: float) -> None:
    assert found.optimizer_steps == expected.optimizer_steps
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        if tolerance == 0:
            assert torch.equal(found.tensors[name], value), name
        elif "qkv.bias" not in name:
            assert relative_error(found.tensors[name], value) < tolerance, name


def test_stages_equal_one_process_of_plain_torch(results, plain):
    for result in results.values():
        for role in ("fake_score", "generator"):
            compare(result["ended"][role], plain[role], TOLERANCE)


def test_state_is_set_to_the_bit_and_a_resume_changes_nothing(results):
    for result in results.values():
        for role in ("fake_score", "generator"):
            compare(result["loaded"][role], result["saved"][role], 0)
            compare(result["resumed"][role], result["ended"][role], 0)


def test_forced_normalisation_reaches_masters_and_working_weights(results):
    """In forward, or on the working weights alone, it would be lost at stages 1 and 2."""
    expected = edm2_roles(plain_role)
    for result in results.values():
        compare(result["edm2"]["state"], expected["state"], TOLERANCE)
        check_normalised(result["edm2"])


def check_normalised(found: dict) -> None:
    for name, weight in found["working"].items():
        master = found["state"].tensors.get(f"{name}/master")
        if master is None:
            continue  # a buffer
        assert torch.equal(weight, master), name
        if weight.dim() >= 2:
            rms = weight.flatten(1).square().mean(1).sqrt()
            assert torch.allclose(rms, torch.ones_like(rms), atol=2e-4), name


ON_TWO = pytest.mark.parametrize("results", [2], ids=["2 ranks"], indirect=True)


@ON_TWO
@pytest.mark.parametrize("name", [*RULES, *(f"{name}, offloaded" for name in OFFLOADED)])
def test_rules_of_an_update_hold_at_every_stage(results, name):
    def role_of(module: torch.nn.Module, rules: UpdateRules) -> TorchRole:
        return TorchRole(module, SOFT_ADAM, rules)

    rule, _, offloaded = name.partition(", ")
    expected = rule_steps(rule, role_of, range(2))
    assert expected["applied"] == [True, True]
    for stage, result in results.items():
        if offloaded and stage == 0:
            continue
        found = result["more"][name]
        assert found["applied"] == expected["applied"]
        compare(found["state"], expected["state"], RULE_TOLERANCE)
        for ours, theirs in zip(found["before"], expected["before"], strict=True):
            for weight, value in theirs.items():
                assert relative_error(ours[weight], value) < RULE_TOLERANCE, weight


@ON_TWO
def test_split_groups_of_sida_equal_one_process(results):
    """The look ahead over a split group, and its sums, under ZeRO."""
    expected = split_sida(trainee_of(tiny_network()), split_plan(1), 0)
    for role, state in expected.items():
        compare(results[2]["more"]["split sida"][role], state, TOLERANCE)


def test_rules_change_what_they_are_for():
    """Else their equality over stages would say nothing."""

    def after(name: str, rules: UpdateRules | None = None) -> dict[str, torch.Tensor]:
        def role_of(module: torch.nn.Module, chosen: UpdateRules) -> TorchRole:
            return TorchRole(module, SOFT_ADAM, rules or chosen)

        return rule_steps(name, role_of, range(2))["state"].tensors

    def change(name: str, rules: UpdateRules) -> float:
        found, other = after(name), after(name, rules)
        return max(relative_error(found[k], other[k]) for k in found if k.endswith("/master"))

    plain = UpdateRules()
    assert change("clip", plain) > 10 * RULE_TOLERANCE
    assert change("constrain first", UpdateRules(family_of("edm2").constrain)) > 10 * RULE_TOLERANCE
    assert change("replace and clip", RULES["replace"]) > 10 * RULE_TOLERANCE
    # NaN became 0: the weight stays. Infinity became 1e5: two whole steps.
    start, found = dict(tiny_edm2().named_parameters()), after("replace")
    assert torch.equal(found["unet.out_gain/master"], start["unet.out_gain"])
    second = float(found["unet.emb_noise.weight/exp_avg_sq"][0, 0])
    assert second == pytest.approx((1 - 0.999**2) * 1e5**2, rel=1e-4)
    leapt = found["unet.emb_noise.weight/master"] - start["unet.emb_noise.weight"].detach()
    assert float(leapt[0, 0]) == pytest.approx(-2, abs=1e-3)


def test_state_moves_between_world_sizes_and_to_plain_torch(results, plain):
    """Saved by DeepSpeed ranks, continued by one process of plain torch."""
    trainee = trainee_of(tiny_network())
    trainee.fake_score.load_state(results[2]["saved"]["fake_score"])
    trainee.generator.load_state(results[2]["saved"]["generator"])
    trainee.images_seen = SAVED_AFTER * BATCH
    iterate(trainee, GroupPlan(BATCH, GROUP, GROUP, 1), 0, ITERATIONS - SAVED_AFTER)
    for role, state in states(trainee).items():
        compare(state, plain[role], TOLERANCE)


def test_every_key_that_changes_numbers_is_set():
    config = deepspeed_config(zero_stage=2, passes=3, world_size=4)
    assert config["gradient_clipping"] == 0.0  # the default of 0.19.8 is 1.0
    assert config["gradient_accumulation_steps"] == 3
    assert config["train_batch_size"] == 12
    assert config["gradient_allreduce_op"] == "mean"
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_allow_untested_optimizer"] is True
    assert not config["bf16"]["enabled"]
    assert not config["fp16"]["enabled"]


# Keys of DeepSpeed's ZeRO configuration that no role is concerned with, and those set elsewhere.
LEFT_ALONE = {
    "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory",  # older names
    "zenflow", "leaf_module", "legacy_stage1", "override_module_apply",
    "pipeline_loading_checkpoint",
    "gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save",
    "log_trace_cache_warnings", "enable_sanity_checks", "save_muon_momentum_buffer_in_memory",
}  # fmt: skip


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("offload", [False, True])
def test_nothing_of_zero_is_left_to_defaults(stage, offload):
    """A default may change with a version: what is not named in zero_config is named here."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    chosen = zero_config(stage, offload)
    fields = {field.alias or name: name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert chosen.keys() <= fields.keys()
    assert {name for alias, name in fields.items() if alias not in chosen} == LEFT_ALONE
    assert chosen["offload_optimizer"]["device"] == ("cpu" if offload else "none")
    assert chosen["offload_optimizer"]["pin_memory"] is torch.cuda.is_available()
    built = DeepSpeedZeroConfig(**chosen)
    assert built.sub_group_size == 1_000_000_000
    assert built.max_live_parameters == 100_000_000  # 400 MB; ten times as much by default
    assert built.max_reuse_distance == 50_000_000


def test_a_stale_build_lock_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    check_no_stale_lock()
    lock = tmp_path / "py311" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    check_no_stale_lock()  # young: somebody builds
    os.utime(lock, (0, 0))
    with pytest.raises(RuntimeError, match="delete it and start again"):
        check_no_stale_lock()
