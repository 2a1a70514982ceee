"""The iteration against official ones, and what splits of the batch may not change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch

from sid_ray.actors.measures import reduce_means
from sid_ray.denoisers.edm2 import normalize_weights
from sid_ray.diffusion.augment import AugmentPipe
from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.distributed.ema import ema_beta
from sid_ray.distributed.roles import AdamSettings, TorchRole, Trainee, UpdateRules
from sid_ray.distributed.update_rules import update_rules
from sid_ray.groups import GroupPlan, MicroStep
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.training.draws import Draws, draws_of
from sid_ray.training.step import Phase, StepSettings, Sums, run_phase, step
from sid_ray.types import Batch, Draw, Networks, Objective
from tests.conftest import Reference, relative_error
from tests.support.networks import (
    LabelledNoise,
    UniformLabels,
    official_network,
    tiny_edm2,
    tiny_network,
    widened,
)

CPU = torch.device("cpu")
# On every weight. The official float64 agrees with itself to 1e-10, its float32 to 2e-5.
WEIGHTS = {torch.float32: 2e-5, torch.float64: 1e-7}
PRINTED = {torch.float32: 1e-4, torch.float64: 1e-6}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def trainee_of(
    network: torch.nn.Module,
    learning_rate: float = 1e-3,
    rules: dict[str, UpdateRules] | None = None,
) -> Trainee:
    def role(name: str) -> TorchRole:
        adam = AdamSettings(learning_rate, 0.0, 0.999, 1e-8)
        return TorchRole(copy.deepcopy(network), adam, (rules or {}).get(name, UpdateRules()))

    teacher = copy.deepcopy(network).requires_grad_(False)
    return Trainee(teacher, role("fake_score"), role("generator"), copy.deepcopy(teacher))


# Five iterations of the official code


def official_draws(reference: Reference, dtype: torch.dtype) -> Draws:
    """What the official code drew, and the data it read."""
    config = reference.json("config")

    def draws(stream: int, images_seen: int, micro_step: MicroStep) -> tuple[Draw, Batch]:
        index = (images_seen - config["resume_kimg"] * 1000) // config["batch_size"]
        phase, time = ("fake", "fake_sigma") if stream == FAKE_SCORE else ("G", "G_t")
        drawn = (f"{phase}_z", f"{phase}_noise", time)
        latents, noise, times = (reference[f"iter{index}/draw/{k}.0"].to(dtype) for k in drawn)
        labels = reference[f"iter{index}/in/{phase}_phase_labels.0"].to(dtype)
        real = reference.tensors.get(f"iter{index}/in/real.0") if phase == "fake" else None
        images = None if real is None else real.to(dtype)
        return Draw(latents, noise, times.flatten()), Batch(labels, images)

    return draws


def run_official(
    reference: Reference, dtype: torch.dtype, trainee: Trainee, objective: Objective
) -> list[dict[str, float]]:
    """The recorded iterations; every iteration's metrics, means over the samples."""
    config = reference.json("config")
    batch_size = config["batch_size"]
    trainee.images_seen = config["resume_kimg"] * 1000
    plan = GroupPlan(batch_size, batch_size, batch_size, 1)
    half_life = config["ema_halflife_kimg"] * 1000
    settings = StepSettings(plan, 0, half_life, config["ema_rampup_ratio"])
    found = []
    for official in reference.json("per_iteration_f64"):
        sums = Sums()
        step(trainee, objective, settings, official_draws(reference, dtype), sums)
        assert trainee.images_seen == official["cur_nimg"]
        found.append({name: float(value) / batch_size for name, value in sums.values.items()})
    return found


def check_weights(
    trainee: Trainee,
    reference: Reference,
    start: dict[str, torch.Tensor],
    average: dict[str, torch.Tensor],
    tolerance: float,
    left_out: tuple[str, ...] = (),
) -> None:
    """All weights of the three networks against start + recorded change."""
    for role, module, before in (
        ("w_fake", trainee.fake_score.module, start),
        ("w_G", trainee.generator.module, start),
        ("w_ema", trainee.generator_ema, average),
    ):
        weights, changes = module.state_dict(), reference.under(f"delta/{role}/")
        assert len(changes) > 50
        for name, change in changes.items():
            if not name.endswith(left_out):
                expected = before[name].double() + change.double()
                assert relative_error(weights[name], expected) < tolerance, f"{role} {name}"


@BOTH
def test_five_iterations_of_sid_equal_the_official_ones(dtype):
    """On EDM, alpha 1.2."""
    reference = Reference("sid_trajectory")
    config = reference.json("config")
    network = official_network(reference.json("network"))
    start = reference.under("w_teacher/")
    network.load_state_dict(start)
    trainee = trainee_of(network.to(dtype))
    objective = SiD(EDMSchedule(t_max=config["tmax"] / 1000), alpha=config["alpha"])
    found = run_official(reference, dtype, trainee, objective)
    for ours, official in zip(found, reference.json("per_iteration_f64"), strict=True):
        for metric, scale, printed in (
            ("fake_loss", 1, "loss_fake_score_print"),
            ("generator_loss", 100, "lossG_print"),  # the official line prints the scaled loss
        ):
            expected = pytest.approx(official[printed], rel=PRINTED[dtype])
            assert scale * ours[metric] == expected, printed
    # In float32 the keys' bias, whose true gradient is zero, takes whole steps of its rounding.
    left_out = ("qkv.bias",) if dtype == torch.float32 else ()
    check_weights(trainee, reference, start, start, WEIGHTS[dtype], left_out)


@BOTH
def test_five_iterations_of_sida_equal_the_official_ones(dtype):
    """On EDM2 with log-variance and forced normalisation, as the published code does it.

    The published code never normalises the fake score, and the generator before its phase; the
    averaged generator starts normalised because evaluating it rewrites it.
    """
    reference = Reference("sida_trajectory")
    config = reference.json("config")
    network = official_network(reference.json("network"), reference.json("class"))
    start = reference.under("w_teacher/")
    network.load_state_dict(start)
    network.to(dtype)
    rules = update_rules(True, "edm2", "official", normalize_weights=True)
    trainee = trainee_of(network, rules=rules)
    normalize_weights(trainee.generator_ema)
    average = copy.deepcopy(network).double()
    normalize_weights(average)
    loss = config["loss_kwargs"]
    objective = SiDA(
        EDMSchedule(loss["P_mean"], loss["P_std"], t_max=config["tmax"] / 1000),
        alpha=config["alpha"],
        logvar=config["return_logvar"],
        adversarial_weight=config["loss_scaling_G_gan"],
        discriminator_weight=config["loss_scaling_D"],
        generator_start=100_000,
        adversarial_start=200_000,
        official=True,
    )
    found = run_official(reference, dtype, trainee, objective)
    for ours, official in zip(found, reference.json("per_iteration_f64"), strict=True):
        for metric, scale, printed in (
            ("fake_loss", 1, "loss_fake_score_print"),
            ("discriminator_loss", objective.discriminator_weight, "lossD_print"),
            ("generator_loss", 100, "lossG_print"),
            ("adversarial_loss", objective.adversarial_weight, "lossG_gan_print"),
        ):
            if metric in ours:
                expected = pytest.approx(official[printed], rel=PRINTED[dtype])
                assert scale * ours[metric] == expected, printed
    # After exactly 200,000 images the adversarial loss is not yet in use.
    assert ["adversarial_loss" in ours for ours in found] == [False, True, True, True, True]
    check_weights(trainee, reference, start, average.state_dict(), WEIGHTS[dtype])


# Splits of the batch


def augmented_sida(augment: float = 0.5, **changes) -> SiDA:
    return SiDA(EDMSchedule(), alpha=1.0, augment=AugmentPipe(augment), **changes)


def plain_sid() -> tuple[Objective, torch.nn.Module]:
    return SiD(EDMSchedule()), tiny_network()


def few_step_sid() -> tuple[Objective, torch.nn.Module]:
    return SiD(EDMSchedule(), num_steps=3), tiny_network()


def edm_sida() -> tuple[Objective, torch.nn.Module]:
    return augmented_sida(), tiny_network(augment_dim=9)


def edm2_sida(official: bool) -> tuple[Objective, torch.nn.Module]:
    """Without augmentation, which EDM2's networks cannot be told of."""
    changes = {"logvar": True, "discriminator_weight": 100.0, "official": official}
    return SiDA(EDMSchedule(), alpha=1.0, **changes), tiny_edm2()


CASES: dict[str, Callable[[], tuple[Objective, torch.nn.Module]]] = {
    "sid": plain_sid,
    "sid in three steps": few_step_sid,
    "sida": edm_sida,
    "sida edm2 official": lambda: edm2_sida(True),
    "sida edm2": lambda: edm2_sida(False),
}


def wide_draws(plan: GroupPlan, objective: Objective) -> Draws:
    """Keyed draws in float64."""
    draws = draws_of(LabelledNoise(), plan, 0, CPU, objective.draw_spec)

    def drawn(stream: int, images_seen: int, micro_step: MicroStep) -> tuple[Draw, Batch]:
        draw, batch = draws(stream, images_seen, micro_step)
        return widened(draw), widened(batch)

    return drawn


@cache
def run(case: str, micro_batch: int, iterations: int = 2) -> dict[str, torch.Tensor]:
    """All weights after some iterations on two groups of eight, dropout (p = 0.1) on."""
    objective, network = CASES[case]()
    plan = GroupPlan(16, 8, micro_batch, 1)
    trainee, draws = trainee_of(network.double()), wide_draws(plan, objective)
    for _ in range(iterations):
        step(trainee, objective, StepSettings(plan, 0, 100, 0.5), draws, Sums())
    weights = {f"fake {k}": v for k, v in trainee.fake_score.module.state_dict().items()}
    weights |= {f"G {k}": v for k, v in trainee.generator.module.state_dict().items()}
    return weights | {f"EMA {k}": v for k, v in trainee.generator_ema.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("micro_batch", [4, 16])
def test_packing_and_splitting_groups_changes_nothing(case, micro_batch):
    """Dropout's masks follow the sample, not the pass; a group's coupling survives its split."""
    whole, other = run(case, 8), run(case, micro_batch)
    for name, value in whole.items():
        found = other[name]
        if name.endswith("qkv.bias"):
            # The keys' bias has no gradient but rounding, and Adam makes whole steps of it.
            queries_and_values = torch.arange(len(value)) % 3 != 1
            value, found = value[queries_and_values], found[queries_and_values]
        assert relative_error(found, value) < 1e-9, name


class Accumulator(TorchRole):
    """A role that only adds gradients up."""

    def update(self) -> torch.Tensor:
        return torch.tensor(True)


def summed_gradients(case: str, plan: GroupPlan) -> tuple[list[tuple[str, torch.Tensor]], Sums]:
    """Both phases' gradients summed over ranks that exist one after another, and the metrics."""
    objective, network = CASES[case]()
    teacher = network.double().requires_grad_(False)
    others = tiny_edm2(1) if "edm2" in case else tiny_network(1, 9 if case == "sida" else 0)
    fake, generator = (
        Accumulator(copy.deepcopy(n), AdamSettings(1e-3, 0.0, 0.999, 1e-8))
        for n in (others.double().requires_grad_(False), teacher)
    )
    nets, sums = Networks(teacher, fake.module, generator.module), Sums()
    draws = wide_draws(plan, objective)
    for rank in range(plan.world_size):
        settings = StepSettings(plan, rank, 0, 0.05)
        for role, stream, loss, whole in (
            (fake, FAKE_SCORE, objective.fake_loss, objective.fake_sums(0)),
            (generator, GENERATOR, objective.generator_loss, objective.generator_sums(0)),
        ):
            run_phase(Phase(role, stream, nets, loss, whole), 0, settings, draws, sums)
    named = [*fake.module.named_parameters(), *generator.module.named_parameters()]
    return [(name, p.grad) for name, p in named if p.grad is not None], sums


@pytest.mark.parametrize("case", ["sid in three steps", "sida", "sida edm2 official"])
def test_any_number_of_ranks_gives_the_same_gradients(case):
    """Five groups on two and three ranks: one of them pads in both."""
    expected, _ = summed_gradients(case, GroupPlan(20, 4, 20, 1))
    assert len(expected) > 50
    for plan in (GroupPlan(20, 4, 8, 2), GroupPlan(20, 4, 4, 3)):
        found, sums = summed_gradients(case, plan)
        biggest = max(float(value.norm()) for _, value in expected)
        for (name, value), (_, gradient) in zip(expected, found, strict=True):
            # Gradients that are zero but for rounding are as near as the others in absolute terms.
            assert float((gradient - value).norm()) < 1e-12 * max(biggest, 1), name
        assert sums.counts["fake_loss"] == 20


def test_first_average_is_a_copy_and_half_life_halves():
    assert ema_beta(0, 64, 5000, 0.05) == 0
    assert ema_beta(10**9, 5000, 5000, 0.05) == pytest.approx(0.5)
    assert ema_beta(1000, 50, 5000, 0.05) == pytest.approx(0.5)
    assert ema_beta(100_000, 4, 500_000, 0.05) == pytest.approx(0.9994456359721023)
    assert ema_beta(10**9, 64, 0, 0.05) == 0


def poisoned(draws: Draws) -> Draws:
    """One infinite number in the forward noise of the first sample."""

    def drawn(stream: int, images_seen: int, micro_step: MicroStep) -> tuple[Draw, Batch]:
        draw, batch = draws(stream, images_seen, micro_step)
        noise = draw.noise.clone()
        noise[0, 0, 0, 0] = torch.inf
        return draw._replace(noise=noise), batch

    return drawn


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    trainee, sums = trainee_of(tiny_network()), Sums()
    plan = GroupPlan(8, 8, 8, 1)
    draws = draws_of(UniformLabels(), plan, seed=0, device=CPU)

    before = copy.deepcopy(trainee.generator.module.state_dict())
    step(trainee, SiD(EDMSchedule()), StepSettings(plan, 0, 0, 0.05), poisoned(draws), sums)
    assert float(sums.values["skipped_updates"]) == 2
    assert trainee.images_seen == 8
    after = trainee.generator.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    step(trainee, SiD(EDMSchedule()), StepSettings(plan, 0, 0, 0.05), draws, sums)
    assert float(sums.values["skipped_updates"]) == 2
    # Of four updates of 8 samples each; those that are skipped are counted, not averaged.
    assert sums.counts["fake_loss"] == sums.counts["generator_loss"] == 16
    assert reduce_means(sums)["skipped_updates"] == 2


def test_reports_are_means_over_samples_however_these_came():
    sums = Sums()
    for values, skipped in (([1.0, 2.0, 6.0], 0.0), ([7.0], 3.0)):
        loss = torch.tensor(values)
        sums.add({"loss": loss.sum()}, len(loss))
        sums.add({"skipped_updates": torch.tensor(skipped)}, 0)
    assert reduce_means(sums) == {"loss": 4.0, "skipped_updates": 3.0}


def test_replaced_gradients_leave_an_update_that_is_finite():
    """The published way, behind compat: NaN becomes 0 instead of skipping the update."""
    rules = {name: UpdateRules(replace_nonfinite=True) for name in ("fake_score", "generator")}
    trainee, sums = trainee_of(tiny_network(), rules=rules), Sums()
    plan = GroupPlan(8, 8, 8, 1)
    before = copy.deepcopy(trainee.fake_score.module.state_dict())
    draws = poisoned(draws_of(UniformLabels(), plan, seed=0, device=CPU))
    step(trainee, SiD(EDMSchedule()), StepSettings(plan, 0, 0, 0.05), draws, sums)
    assert float(sums.values["skipped_updates"]) == 0
    assert trainee.fake_score.state().optimizer_steps == 1
    for role in (trainee.fake_score, trainee.generator):
        assert all(value.isfinite().all() for value in role.module.state_dict().values())
    after = trainee.fake_score.module.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_generator_waits_for_the_discriminator():
    """Strictly more than generator_start images, counted before the iteration."""
    trainee, plan = trainee_of(tiny_network()), GroupPlan(4, 4, 4, 1)
    objective = SiDA(EDMSchedule(), alpha=1.0, generator_start=4, adversarial_start=8)
    draws = draws_of(LabelledNoise(), plan, 0, CPU, objective.draw_spec)
    moved, adversarial = [], []
    for _ in range(4):
        sums = Sums()
        weights = [copy.deepcopy(r.module.state_dict()) for r in roles_of(trainee)]
        step(trainee, objective, StepSettings(plan, 0, 0, 0.05), draws, sums)
        after = [r.module.state_dict() for r in roles_of(trainee)]
        moved.append(
            tuple(
                any(not torch.equal(a[k], b[k]) for k in a)
                for a, b in zip(weights, after, strict=True)
            )
        )
        adversarial.append("adversarial_loss" in sums.values)
        assert ("generator_loss" in sums.values) == moved[-1][1]
    # At 0 and 4 images the fake score alone moves.
    assert moved == [(True, False), (True, False), (True, True), (True, True)]
    assert adversarial == [False, False, False, True]


def roles_of(trainee: Trainee) -> tuple[TorchRole, TorchRole]:
    return trainee.fake_score, trainee.generator
