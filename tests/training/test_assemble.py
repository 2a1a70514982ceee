"""What does not fit together is refused before anything is trained; a generator knows its steps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.denoisers.family import leave_weight
from sid_ray.denoisers.registry import family_of
from sid_ray.diffusion.schedules import DiscreteVPSchedule, EDMSchedule
from sid_ray.errors import UserError
from sid_ray.objectives.sid import SiD
from sid_ray.objectives.sida import SiDA
from sid_ray.objectives.vsd import VSD
from sid_ray.training.assemble import (
    check_generator,
    check_teacher,
    generation_of,
    generator_description,
    objective_of,
    rules_of,
    schedule_of,
)
from sid_ray.weights.folder import ModelDescription
from tests.support.networks import TINY

REFERENCE = Path(__file__).parents[1] / "reference" / "lsg"
forced_normalize = family_of("edm2").constrain
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


def with_arguments(description: ModelDescription, **arguments) -> ModelDescription:
    return ModelDescription(description.family, dict(description.network) | arguments)


@pytest.mark.parametrize(
    ("teacher", "generator"),
    [
        (EDM2, with_arguments(EDM2, logvar=False, logvar_channels=64, dropout=0.3)),
        # Published files write out what is None by default, and resolutions that there are none of.
        (EDM2, with_arguments(EDM2, channel_mult_noise=1, channel_mult_emb=4)),
        (EDM2, with_arguments(EDM2, attn_resolutions=[8, 16, 32])),
        (EDM, with_arguments(EDM, augment_dim=9, dropout=0.0, label_dropout=0.1)),
        (EDM, with_arguments(EDM, channel_mult=(1, 2))),
        (with_arguments(EDM, augment_dim=9), EDM),
        (TEXT, with_arguments(TEXT, dropout=0.1, prediction_type="epsilon", upcast_attention=True)),
        (TEXT, ModelDescription(TEXT.family, {k: v for k, v in UNET.items() if k[0] != "_"})),
    ],
)
def test_an_initial_generator_may_be_trained_otherwise(teacher, generator):
    """What is left out, written otherwise or never asked of a generator changes no image."""
    check_generator("there", teacher, generator)


@pytest.mark.parametrize(
    ("teacher", "generator", "words"),
    [
        (
            EDM,
            with_arguments(EDM, model_channels=32),
            "there is an edm network with model_channels 32, the teacher an edm network with "
            "model_channels 16: it must be a generator",
        ),
        (EDM, EDM2, "there is an edm2 network, the teacher an edm network: it must"),
        (EDM2, EDM, "there is an edm network, the teacher an edm2 network: it must"),
        (EDM2, TEXT, "there is a stable-diffusion network, the teacher an edm2 network"),
        (
            EDM2,
            with_arguments(EDM2, sigma_data=0.6, num_blocks=2, label_dim=3, img_channels=4),
            "with img_channels 4, label_dim 3, num_blocks 2 and 1 more, the teacher an edm2",
        ),
        (EDM2, with_arguments(EDM2, channel_mult_noise=2), "channel_mult_noise 2, the teacher"),
        (
            TEXT,
            with_arguments(TEXT, prediction_type="v_prediction"),
            "with prediction_type 'v_prediction', the teacher",
        ),
        (EDM, with_arguments(EDM, no_such=1), "not the arguments of an edm network: .*no_such"),
    ],
)
def test_an_initial_generator_of_another_network_is_named(teacher, generator, words):
    with pytest.raises(UserError, match=words):
        check_generator("there", teacher, generator)


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("teacher", [EDM, TEXT], ids=["edm", "vp"])
def test_a_generators_description_brings_its_generation_back(teacher, num_steps):
    changes = {"schedule__init_sigma": 3.0, "schedule__init_timestep": 700}
    config = config_of(teacher, objective__num_steps=num_steps, **changes)
    described = generator_description(
        config, dataclasses.replace(teacher, notes={"commit": "12ab"})
    )
    text = ModelDescription.from_json(described.to_json(), "model.json")
    schedule, steps = generation_of(text)
    assert steps == num_steps
    if teacher is EDM:
        assert schedule == EDMSchedule(init_sigma=3.0)
    else:
        assert schedule == DiscreteVPSchedule(init_timestep=700)
    assert ("num_steps" in text.one_step) == (num_steps > 1)
    assert text.notes["teacher"] == "somewhere"
    assert text.notes["teacher_commit"] == "12ab"


@pytest.mark.parametrize("one_step", [{}, {"num_steps": 2}, {"timestep": 625, "beta": 1}])
def test_a_description_without_a_level_is_named(one_step):
    with pytest.raises(UserError, match=r"one_step of model\.json is"):
        generation_of(dataclasses.replace(EDM, one_step=one_step))


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


def test_our_rules_are_the_same_for_all_objectives():
    """Both networks are normalised after each update where the config asks for it."""
    for name in ("sid", "sida", "vsd"):
        ours = rules_of(config_of(EDM2, objective__name=name, training__clip_value=1.0), "edm2")
        assert {rule.constrain for rule in ours.values()} == {forced_normalize}
        assert not any(rule.constrain_first or rule.replace_nonfinite for rule in ours.values())
        assert (ours["fake_score"].clip_value, ours["generator"].clip_value) == (1.0, 0.0)
        changes = {"objective__name": name, "training__normalize_weights": False}
        without = rules_of(config_of(EDM2, **changes), "edm2")
        assert {rule.constrain for rule in without.values()} == {leave_weight}


@pytest.mark.parametrize("compat", ["none", "official"])
@pytest.mark.parametrize("roles", ["both", "fake", "generator"])
def test_whole_networks_alone_are_normalised(roles, compat):
    """Of an adapter, A and B would lose their sizes, and so the change its own."""
    config = config_of(EDM2, adapter__rank=4, adapter__roles=roles, objective__compat=compat)
    for role, rule in rules_of(config, "edm2").items():
        is_adapter = roles in ("both", role.removesuffix("_score"))
        assert rule.constrain == (leave_weight if is_adapter else forced_normalize)
        assert rule.constrain_first == (compat == "official" and not is_adapter)
        assert rule.replace_nonfinite == (compat == "official")


@pytest.mark.parametrize(
    ("objective", "flag", "fake_score", "generator"),
    [
        ("sid", True, forced_normalize, forced_normalize),
        ("sid", False, forced_normalize, forced_normalize),  # the published code reads no flag
        ("vsd", False, forced_normalize, forced_normalize),
        ("sida", True, leave_weight, forced_normalize),
        ("sida", False, leave_weight, leave_weight),
    ],
)
def test_published_rules_depend_on_the_objective(objective, flag, fake_score, generator):
    changes = {"objective__name": objective, "objective__compat": "official"}
    rules = rules_of(config_of(EDM2, training__normalize_weights=flag, **changes), "edm2")
    for role, constrain in (("fake_score", fake_score), ("generator", generator)):
        assert rules[role].constrain is constrain
        assert rules[role].constrain_first == (constrain is forced_normalize)
        assert rules[role].replace_nonfinite


@pytest.mark.parametrize("compat", ["none", "official"])
def test_other_families_weights_are_left_alone(compat):
    for family in ("edm", "stable-diffusion"):
        for name in ("sid", "sida", "vsd", "lsg"):
            changes = {"objective__name": name, "objective__compat": compat}
            rules = rules_of(config_of(EDM, **changes), family)
            assert {rule.constrain for rule in rules.values()} == {leave_weight}
