"""``--compat official`` against the published EDM2 loop, with and without its adversarial part.

The loop of official_loop.py is written from its description; trajectories of the published code
itself (test_step.py) hold no EDM2 run without a discriminator, and none that accumulates.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.edm2 import EDM2Denoiser
from sid_ray.diffusion.rng import FAKE_SCORE, GENERATOR
from sid_ray.distributed.roles import TorchRole, Trainee
from sid_ray.training.assemble import adam_of, objective_of, rules_of
from sid_ray.training.draws import Draws, draws_of
from sid_ray.training.step import StepSettings, Sums, step
from sid_ray.types import Batch, Draw
from tests.conftest import relative_error
from tests.support.networks import TINY_EDM2, LabelledNoise, widened
from tests.support.official_loop import FAKE, Flags, OfficialLoop

ITERATIONS, GROUP, TOLERANCE = 5, 4, 1e-12
EDM2 = EDM2Denoiser(dataclasses.replace(TINY_EDM2, dropout=0.0))
SID, SIDA = {"use_gan": False}, {"use_gan": True}
# The flags, and the images seen at first: the generator's first update (behind 100,000 images) and
# the adversarial loss (behind 200,000) fall within.
CASES = {
    "sid, flag off": (Flags(**SID, force_normalization=False, return_logvar=True), 0),
    "sid, flag on": (Flags(**SID, force_normalization=True, return_logvar=True), 100_000),
    "sid without logvar": (Flags(**SID, force_normalization=False, alpha=1.2), 100_000),
    "sid in three passes": (Flags(**SID, force_normalization=True, passes=3), 0),
    "sida, flag off": (Flags(**SIDA, force_normalization=False), 199_992),
    "sida, flag on": (Flags(**SIDA, force_normalization=True, return_logvar=True), 99_992),
    "sida in two passes": (
        Flags(**SIDA, force_normalization=True, return_logvar=True, passes=2),
        199_992,
    ),
    "sida in two steps": (Flags(**SIDA, force_normalization=False, num_steps=2), 199_992),
}


def teacher() -> EDM2Denoiser:
    """Weights far from rows of unit magnitude, gains that are not zero; float64."""
    torch.manual_seed(0)
    network = EDM2Denoiser(EDM2.net)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(0.4) if weight.ndim else weight.fill_(0.4)
    return network.double().requires_grad_(False)


def config_of(flags: Flags) -> DistillConfig:
    """The same run in our words."""
    batch_size = GROUP * flags.passes
    return replace(
        DistillConfig(recipe="r"),
        objective__name="sida" if flags.use_gan else "sid",
        objective__compat="official",
        objective__alpha=flags.alpha,
        objective__logvar=flags.return_logvar,
        objective__num_steps=flags.num_steps,
        objective__generator_scale=flags.lsg,
        objective__adversarial_weight=flags.lsg_gan,
        objective__discriminator_weight=flags.lsd,
        objective__generator_start=flags.generator_from,
        objective__adversarial_start=flags.adversarial_from,
        schedule__p_mean=flags.p_mean,
        schedule__p_std=flags.p_std,
        training__normalize_weights=flags.force_normalization,
        training__batch_size=batch_size,
        training__group_size=GROUP,
        training__fake_score_lr=flags.lr,
        training__generator_lr=flags.lr,
        training__ema_half_life=flags.ema_images,
    )


def trainee_of(config: DistillConfig, images_seen: int) -> Trainee:
    rules = rules_of(config, "edm2")

    def role(name: str) -> TorchRole:
        return TorchRole(teacher(), adam_of(config, name), rules[name])

    return Trainee(teacher(), role("fake_score"), role("generator"), teacher(), images_seen)


def wide_draws(config: DistillConfig) -> Draws:
    """Keyed draws in float64, which both loops are given."""
    plan, spec = config.group_plan(1), objective_of(config).draw_spec
    keyed = draws_of(LabelledNoise(), plan, 0, torch.device("cpu"), spec)

    def drawn(stream, images_seen, micro_step):
        draw, batch = keyed(stream, images_seen, micro_step)
        return widened(draw), widened(batch)

    return drawn


def worst_errors(flags: Flags, images_seen: int) -> dict[str, float]:
    """The largest relative error of a tensor, by network, after the iterations of both loops."""
    flags = dataclasses.replace(flags, batch_size=GROUP * flags.passes)
    config = config_of(flags)
    draws, plan = wide_draws(config), config.group_plan(1)

    def given(phase: str, seen: int, index: int) -> tuple[Draw, Batch]:
        stream = FAKE_SCORE if phase == FAKE else GENERATOR
        return draws(stream, seen, plan.micro_steps(0)[index])

    theirs, ours = OfficialLoop(teacher(), flags, images_seen), trainee_of(config, images_seen)
    settings = StepSettings(plan, 0, config.training.ema_half_life, config.training.ema_rampup)
    for _ in range(ITERATIONS):
        theirs.iterate(given)
        step(ours, objective_of(config), settings, draws, Sums())
    pairs = {
        "fake score": (ours.fake_score.module, theirs.fake),
        "generator": (ours.generator.module, theirs.generator),
        "average": (ours.generator_ema, theirs.average),
    }
    found = {}
    for role, (mine, other) in pairs.items():
        weights, before = mine.state_dict(), teacher().state_dict()
        expected = other.state_dict()
        # Published generators have no such head, fake scores neither without --return_logvar.
        headless = role != "fake score" or not flags.return_logvar
        names = [name for name in expected if not (headless and name.startswith("logvar"))]
        assert sum(not torch.equal(expected[name], before[name]) for name in names) > 20
        found[role] = max(relative_error(weights[name], expected[name]) for name in names)
    return found


@pytest.mark.parametrize("case", CASES)
def test_five_iterations_equal_the_published_loop(case):
    found = worst_errors(*CASES[case])
    assert max(found.values()) < TOLERANCE, found
