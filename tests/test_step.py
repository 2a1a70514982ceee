"""The iteration against five official ones, and what splits of the batch may not change."""

import copy

import pytest
import torch

from sid_ray.ema import ema_beta
from sid_ray.engine import AdamSettings, TorchRole
from sid_ray.groups import GroupPlan, MicroStep
from sid_ray.objectives.sid import SiD
from sid_ray.rng import FAKE_SCORE
from sid_ray.schedules import EDMSchedule
from sid_ray.step import StepSettings, Sums, Trainee, draws_of, step
from sid_ray.types import Batch, Draw
from tests.conftest import Reference, relative_error
from tests.networks import UniformLabels, official_network, tiny_network

CPU = torch.device("cpu")


def trainee_of(network: torch.nn.Module, learning_rate: float = 1e-3) -> Trainee:
    def role() -> TorchRole:
        return TorchRole(copy.deepcopy(network), AdamSettings(learning_rate, 0.0, 0.999, 1e-8))

    teacher = copy.deepcopy(network).requires_grad_(False)
    return Trainee(teacher, role(), role(), copy.deepcopy(teacher))


def test_five_iterations_equal_the_official_ones_in_float64():
    reference = Reference("sid_trajectory")
    config = reference.json("config")
    network = official_network(reference.json("network"))
    start = reference.under("w_teacher/")
    network.load_state_dict(start)
    trainee = trainee_of(network.double())
    trainee.images_seen = config["resume_kimg"] * 1000
    batch_size = config["batch_size"]

    def draws(stream: int, images_seen: int, micro_step: MicroStep) -> tuple[Draw, Batch]:
        index = (images_seen - config["resume_kimg"] * 1000) // batch_size
        phase, time = ("fake", "fake_sigma") if stream == FAKE_SCORE else ("G", "G_t")
        drawn = (f"{phase}_z", f"{phase}_noise", time)
        latents, noise, times = (reference[f"iter{index}/draw/{k}.0"].double() for k in drawn)
        labels = reference[f"iter{index}/in/{phase}_phase_labels.0"].double()
        return Draw(latents, noise, times.flatten()), Batch(labels)

    plan = GroupPlan(batch_size, batch_size, batch_size, 1)
    half_life = config["ema_halflife_kimg"] * 1000
    settings = StepSettings(plan, 0, half_life, config["ema_rampup_ratio"])
    objective = SiD(EDMSchedule(t_max=config["tmax"] / 1000), alpha=config["alpha"])
    for official in reference.json("per_iteration_f64"):
        sums = Sums()
        step(trainee, objective, settings, draws, sums)
        assert trainee.images_seen == official["cur_nimg"]
        printed = float(sums.values["fake_loss"]) / batch_size
        assert printed == pytest.approx(official["loss_fake_score_print"], rel=1e-7)
        # The official line prints the scaled loss: 100 times ours.
        printed = 100 * float(sums.values["generator_loss"]) / batch_size
        assert printed == pytest.approx(official["lossG_print"], rel=1e-6)

    networks = {
        "w_fake": trainee.fake_score.module,
        "w_G": trainee.generator.module,
        "w_ema": trainee.generator_ema,
    }
    for role, module in networks.items():
        for name, value in module.state_dict().items():
            expected = start[name].double() + reference[f"delta/{role}/{name}"].double()
            assert relative_error(value, expected) < 1e-7, f"{role} {name}"


def widened(draw: Draw) -> Draw:
    """The same numbers in float64."""
    return Draw(*(v if v is None or not v.is_floating_point() else v.double() for v in draw))


def run(plan_sizes: tuple[int, int, int], iterations: int = 3) -> dict[str, torch.Tensor]:
    batch_size, group_size, micro_batch = plan_sizes
    plan = GroupPlan(batch_size, group_size, micro_batch, 1)
    trainee = trainee_of(tiny_network().double())
    draws = draws_of(UniformLabels(), plan, seed=0, device=CPU)

    def draws_64(stream, images_seen, micro_step):
        draw, batch = draws(stream, images_seen, micro_step)
        return widened(draw), Batch(batch.labels.double())

    for _ in range(iterations):
        step(trainee, SiD(EDMSchedule()), StepSettings(plan, 0, 100, 0.5), draws_64, Sums())
    weights = {f"G {k}": v for k, v in trainee.generator.module.state_dict().items()}
    return weights | {f"EMA {k}": v for k, v in trainee.generator_ema.state_dict().items()}


@pytest.mark.parametrize("micro_batch", [2, 4, 16])
def test_packing_and_splitting_groups_changes_nothing(micro_batch):
    """Dropout is on (p = 0.1): its masks follow the sample, not the pass it is in."""
    whole, other = run((16, 8, 8)), run((16, 8, micro_batch))
    for name, value in whole.items():
        found = other[name]
        if name.endswith("qkv.bias"):
            # The keys' bias has no gradient but rounding, and Adam makes whole steps of it.
            queries_and_values = torch.arange(len(value)) % 3 != 1
            value, found = value[queries_and_values], found[queries_and_values]
        assert relative_error(found, value) < 1e-9, name


def test_first_average_is_a_copy_and_half_life_halves():
    assert ema_beta(0, 64, 5000, 0.05) == 0
    assert ema_beta(10**9, 5000, 5000, 0.05) == pytest.approx(0.5)
    assert ema_beta(1000, 50, 5000, 0.05) == pytest.approx(0.5)
    assert ema_beta(100_000, 4, 500_000, 0.05) == pytest.approx(0.9994456359721023)
    assert ema_beta(10**9, 64, 0, 0.05) == 0


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    trainee, sums = trainee_of(tiny_network()), Sums()
    plan = GroupPlan(8, 8, 8, 1)
    draws = draws_of(UniformLabels(), plan, seed=0, device=CPU)

    def poisoned(stream, images_seen, micro_step):
        draw, batch = draws(stream, images_seen, micro_step)
        noise = draw.noise.clone()
        noise[0, 0, 0, 0] = torch.inf
        return draw._replace(noise=noise), batch

    before = copy.deepcopy(trainee.generator.module.state_dict())
    step(trainee, SiD(EDMSchedule()), StepSettings(plan, 0, 0, 0.05), poisoned, sums)
    assert float(sums.values["skipped_updates"]) == 2
    assert trainee.images_seen == 8
    after = trainee.generator.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    step(trainee, SiD(EDMSchedule()), StepSettings(plan, 0, 0, 0.05), draws, sums)
    assert float(sums.values["skipped_updates"]) == 2
