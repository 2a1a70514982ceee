"""What does not fit together is refused before anything is trained; a generator knows its steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sid_ray.assemble import (
    check_generator,
    check_teacher,
    generation_of,
    generator_description,
    objective_of,
    rules_of,
    schedule_of,
)
from sid_ray.config import DistillConfig, replace
from sid_ray.denoisers.edm2 import forced_normalize
from sid_ray.denoisers.spec import leave_weight
from sid_ray.errors import UserError
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.objectives.vsd import VSD
from sid_ray.schedules import DiscreteVPSchedule, EDMSchedule
from sid_ray.weights.folder import ModelDescription
from tests.networks import TINY

REFERENCE = Path(__file__).parent / "reference" / "lsg"
EDM = ModelDescription("edm", TINY.to_json())
EDM2 = ModelDescription("edm2", {"img_resolution": 8, "img_channels": 1, "label_dim": 10})
UNET = json.loads((REFERENCE / "tiny_unet" / "config.json").read_text())
TEXT = ModelDescription("stable-diffusion", UNET)


@pytest.fixture
def prompts(tmp_path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\n")
    return str(path)


def config_of(teacher: ModelDescription, prompts: str = "", **dotted) -> DistillConfig:
    """A config that fits the teacher, with changes."""
    config = replace(DistillConfig(recipe="r"), teacher__source="somewhere")
    if teacher is TEXT:
        config = replace(config, schedule__kind="vp", data__name="prompts", data__source=prompts)
    return replace(config, **dotted)


@pytest.mark.parametrize(
    ("teacher", "changes"),
    [
        (EDM, {}),
        (EDM, {"objective__name": "sida"}),
        (EDM, {"objective__name": "vsd"}),
        (EDM2, {"objective__logvar": True}),
        (
            ModelDescription("edm2", dict(EDM2.network) | {"logvar": True}),
            {"objective__logvar": True},
        ),
        (TEXT, {"objective__name": "lsg", "objective__kappa4": 2.0}),
        (TEXT, {}),
    ],
)
def test_what_fits_is_accepted(teacher, changes, prompts):
    check_teacher(config_of(teacher, prompts, **changes), teacher, REFERENCE)


@pytest.mark.parametrize(
    ("teacher", "changes", "words"),
    [
        (EDM, {"objective__kappa2": 1.5}, r"objective\.kappa2 is 1\.5, but .* reads no text"),
        (EDM, {"objective__name": "lsg"}, "objective is lsg, but .* reads no text"),
        (EDM, {"objective__logvar": True}, "needs a log-variance head; teacher somewhere has none"),
        (EDM, {"schedule__kind": "vp"}, "schedule.kind is 'vp'.* edm network: it needs 'edm'"),
        (TEXT, {"schedule__kind": "edm"}, "it needs 'vp'"),
        (TEXT, {"schedule__beta_end": 0.02}, r"schedule\.beta_end is 0\.02, but .* says 0\.012"),
        (TEXT, {"schedule__prediction_type": "v_prediction"}, "says 'epsilon'"),
        (TEXT, {"schedule__beta_schedule": "linear"}, "says 'scaled_linear'"),
        (TEXT, {"objective__name": "sida"}, "sida needs real images"),
        (
            TEXT,
            {"data__name": "imagenet-512", "data__source": ""},
            r"16 pixels a side, data set 'imagenet-512' has 64",
        ),
        (
            EDM,
            {"data__name": "cifar10", "data__source": ""},
            "1 channels, data set 'cifar10' has 3",
        ),
        (EDM, {"data__name": "prompts"}, "10 classes, data set 'prompts' has 0"),
        (EDM, {"objective__augment": 0.1}, r"objective\.augment is 0\.1, .* augmentation labels"),
    ],
)
def test_what_does_not_fit_is_named(teacher, changes, words, prompts):
    config = config_of(teacher, prompts, **({"data__source": prompts} | changes))
    with pytest.raises(UserError, match=words):
        check_teacher(config, teacher, REFERENCE)


def test_labels_alone_are_not_enough_for_sida():
    cifar = ModelDescription("edm", TINY.to_json() | {"img_resolution": 32, "img_channels": 3})
    config = config_of(EDM, objective__name="sida", data__name="cifar10")
    with pytest.raises(UserError, match="data set 'cifar10' gives none here"):
        check_teacher(config, cifar, REFERENCE)


def test_text_and_prompts_go_together(prompts):
    unlabelled = ModelDescription("edm", TINY.to_json() | {"label_dim": 0})
    config = config_of(EDM, data__name="prompts", data__source=prompts)
    with pytest.raises(UserError, match="reads no text, data set 'prompts' has prompts"):
        check_teacher(config, unlabelled, REFERENCE)


def test_an_initial_generator_is_of_the_teachers_network():
    without_head = ModelDescription("edm2", dict(EDM2.network) | {"logvar": False})
    check_generator("there", EDM2, without_head)
    other = ModelDescription("edm", TINY.to_json() | {"model_channels": 32})
    with pytest.raises(UserError, match="there has model_channels 32, the teacher 16"):
        check_generator("there", EDM, other)


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("teacher", [EDM, TEXT], ids=["edm", "vp"])
def test_a_generators_description_brings_its_generation_back(teacher, num_steps):
    changes = {"schedule__init_sigma": 3.0, "schedule__init_timestep": 700}
    config = config_of(teacher, objective__num_steps=num_steps, **changes)
    described = generator_description(config, teacher)
    text = ModelDescription.from_json(described.to_json(), "model.json")
    schedule, steps = generation_of(text.one_step)
    assert steps == num_steps
    if teacher is EDM:
        assert schedule == EDMSchedule(init_sigma=3.0)
    else:
        assert schedule == DiscreteVPSchedule(init_timestep=700)
    assert ("num_steps" in text.one_step) == (num_steps > 1)
    assert text.notes["teacher"] == "somewhere"


@pytest.mark.parametrize("one_step", [{}, {"num_steps": 2}, {"timestep": 625, "beta": 1}])
def test_a_description_without_a_level_is_named(one_step):
    with pytest.raises(UserError, match=r"one_step of model\.json is"):
        generation_of(one_step)


def test_schedules_follow_their_kind():
    edm = schedule_of(config_of(EDM, schedule__p_mean=-0.4, schedule__t_max=0.7))
    assert edm == EDMSchedule(p_mean=-0.4, t_max=0.7)
    vp = schedule_of(config_of(TEXT, schedule__timestep_min=30, schedule__timestep_max=900))
    assert vp == DiscreteVPSchedule(t_min=30, t_max=900)


def test_objectives_carry_the_configs_numbers():
    changes = {f"objective__kappa{i}": float(i) for i in (1, 2, 3, 4)}
    sid = objective_of(config_of(TEXT, objective__alpha=1.1, objective__num_steps=4, **changes))
    assert type(sid) is SiD
    assert (sid.alpha, sid.num_steps, sid.augment) == (1.1, 4, None)
    kappas = (sid.guidance.kappa1, sid.guidance.kappa2, sid.guidance.kappa3, sid.guidance.kappa4)
    assert kappas == (1, 2, 3, 4)
    assert type(objective_of(config_of(EDM, objective__name="vsd"))) is VSD
    sida = objective_of(
        config_of(
            EDM,
            objective__name="sida",
            objective__compat="official",
            objective__augment=0.12,
            objective__adversarial_weight=0.02,
            objective__discriminator_weight=100.0,
            objective__generator_start=1,
            objective__adversarial_start=2,
            objective__logvar=True,
        )
    )
    assert type(sida) is SiDA
    assert (sida.adversarial_weight, sida.discriminator_weight) == (0.02, 100.0)
    assert (sida.generator_start, sida.adversarial_start, sida.official) == (1, 2, True)
    assert sida.augment.probability == 0.12
    assert sida.logvar


def test_rules_of_the_published_code_and_ours():
    """Ours normalises both networks after each update; the published code the generator, before."""
    ours = rules_of(config_of(EDM2, training__clip_value=1.0), "edm2")
    assert {rule.constrain for rule in ours.values()} == {forced_normalize}
    assert not any(rule.constrain_first or rule.replace_nonfinite for rule in ours.values())
    assert (ours["fake_score"].clip_value, ours["generator"].clip_value) == (1.0, 0.0)
    official = rules_of(config_of(EDM2, objective__compat="official"), "edm2")
    assert official["fake_score"].constrain is leave_weight
    assert official["generator"].constrain is forced_normalize
    assert official["generator"].constrain_first
    assert all(rule.replace_nonfinite for rule in official.values())
    without = rules_of(config_of(EDM2, training__normalize_weights=False), "edm2")
    assert {rule.constrain for rule in without.values()} == {leave_weight}
    assert {rule.constrain for rule in rules_of(config_of(EDM), "edm").values()} == {leave_weight}
