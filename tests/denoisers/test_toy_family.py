"""A family in one file outside the package goes all the way: no other file knows it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sid_ray
from benchmarks.one_process import OneProcess
from sid_ray.checkpoint.model_card import model_card
from sid_ray.commands.generate import Painter
from sid_ray.config.distill_config import replace
from sid_ray.denoisers.family import Family
from sid_ray.denoisers.noise import EDM_NOISE
from sid_ray.denoisers.registry import families, family_of, register_family
from sid_ray.errors import UserError
from sid_ray.evaluation.final_report import samplers
from sid_ray.evaluation.samplers import seeded_inputs
from sid_ray.evaluation.subject import find_subject, sampler_settings, schedule_config
from sid_ray.planning.fit import Gpus, Planner
from sid_ray.recipes.known_networks import teacher_of
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import find_start, generator_description
from sid_ray.weights.command import inspect
from sid_ray.weights.folder import load_model, save_model
from sid_ray.weights.networks import describe
from tests.support.toy_family import FAMILY, NAME, TOY, describe_toy, entry_point, write_teacher

REPOSITORY = Path(sid_ray.__file__).parents[1]


@pytest.fixture(autouse=True)
def registered():
    register_family(FAMILY)


@pytest.fixture
def teacher(tmp_path) -> Path:
    return write_teacher(tmp_path / "toy-teacher")


@pytest.fixture
def config(teacher):
    return replace(
        recipe("digits-sid"),
        teacher__source=str(teacher),
        training__batch_size=32,
        resources__micro_batch=0,
        evaluation__num_images=128,
        evaluation__teacher_steps=2,
    )


def test_the_registry_knows_it_beside_the_others():
    assert families()[NAME] is FAMILY and family_of(NAME).shape(TOY) == (1, 8, 8)
    assert {"edm", "edm2", "stable-diffusion"} < set(families())
    with pytest.raises(UserError, match=r"unknown network family 'toi'.*Did you mean toy"):
        family_of("toi")


def test_two_families_of_one_name_are_refused():
    class Other(Family):
        name, noise = NAME, EDM_NOISE

        def build(self, network):
            return nn.Identity()

        def shape(self, network):
            return 1, 1, 1

    with pytest.raises(UserError, match="network family 'toy' is registered already"):
        register_family(Other())


def test_a_folder_of_it_is_described_and_loaded(teacher):
    assert describe(teacher) == describe_toy()
    network, description = load_model(teacher)
    assert description == describe_toy()
    expected = FAMILY.build(TOY)
    assert {n: v.shape for n, v in network.state_dict().items()} == {
        n: v.shape for n, v in expected.state_dict().items()
    }
    assert any(line == f"family      {NAME}" for line in inspect(str(teacher)))


@pytest.mark.parametrize("network", [{"size": 8}, TOY | {"width": 0}, TOY | {"depth": 2}])
def test_arguments_that_make_no_network_are_one_line(teacher, network):
    (teacher / "model.json").write_text(json.dumps({"family": NAME, "network": network}))
    with pytest.raises(UserError) as error:
        describe(teacher)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("objective", ["sid", "sida"])
def test_it_is_distilled_and_scored(config, objective):
    """A step changes fake score and generator, never the teacher."""
    run = OneProcess(replace(config, objective__name=objective))
    before = {name: value.clone() for name, value in run.trainee.teacher.state_dict().items()}
    assert run.train_to(32) == 32
    for role in (run.trainee.fake_score, run.trainee.generator):
        changed = [(before[n] != v).any() for n, v in role.module.state_dict().items()]
        assert any(changed)
    assert all(torch.equal(before[n], v) for n, v in run.trainee.teacher.state_dict().items())
    assert 0 < run.score() < float("inf")


def test_what_it_lacks_is_refused_before_a_run(config):
    for changes, words in (
        ({"schedule__kind": "vp"}, "is a toy network: it needs 'edm'"),
        ({"objective__name": "lsg"}, "reads no text"),
        ({"objective__logvar": True}, "log-variance head"),
        ({"objective__augment": 0.1}, "reads no augmentation labels"),
        ({"training__precision": "bfloat16"}, "toy networks compute in float32"),
    ):
        with pytest.raises(UserError, match=words):
            find_start(replace(config, **changes))


def test_its_memory_is_planned(config):
    description = teacher_of(config)
    planner = Planner(description)
    small = planner.peak(config, Gpus.of(2, 1.0))
    wide = Planner(describe_toy(width=64)).peak(config, Gpus.of(2, 1.0))
    assert 0 < small.total < wide.total


def test_teacher_and_generator_make_images(config, teacher, tmp_path):
    subject = find_subject(str(teacher))
    assert (subject.shape, subject.label_dim, subject.reads_text) == ((1, 8, 8), 10, False)
    assert schedule_config(subject).kind == config.schedule.kind
    assert sampler_settings(subject, config)["evaluations"] == 3
    network, description = load_model(teacher)
    rows = samplers(config, network, network, None)
    assert rows[0][0] == "teacher, 3 evaluations"
    source = OneProcess(config).judge.source
    images = [sampler(seeded_inputs(source, range(4))) for _, _, sampler in rows]
    assert torch.equal(images[1], images[2]) and not torch.equal(images[0], images[1])
    made = tmp_path / "generator"
    save_model(made, network.state_dict(), generator_description(config, description))
    pictures = Painter(made, None, (), 4).images(range(3))
    assert pictures.shape == (3, 1, 8, 8) and pictures.dtype == torch.uint8


def test_its_card_and_its_table_name_it(config):
    card = model_card(config, generator_description(config, describe_toy()), 32, {}, "abc123")
    assert "A generator of family `toy`: it makes an image of 8x8 from noise" in card
    assert "pipeline_tag: unconditional-image-generation" in card and "--prompt" not in card


def in_a_process(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )


def test_an_entry_point_makes_it_known_to_a_fresh_process(tmp_path):
    code = "from sid_ray.denoisers.registry import family_of; print(family_of('toy').teacher_steps)"
    done = in_a_process(entry_point(tmp_path / "site"), code)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_an_entry_point_that_fails_is_named(tmp_path):
    code = (
        "from sid_ray.denoisers.registry import families\n"
        "from sid_ray.errors import UserError\n"
        "try: families()\nexcept UserError as error: print(error)"
    )
    done = in_a_process(entry_point(tmp_path / "a", families="nowhere.toy:FAMILY"), code)
    assert "network family 'toy' of toy-family cannot be loaded (ModuleNotFound" in done.stdout
    done = in_a_process(entry_point(tmp_path / "b", families="tests.support.toy_family:TOY"), code)
    assert "is called None; expected" in done.stdout
    target = "tests.support.toy_family:ToyFamily"
    done = in_a_process(entry_point(tmp_path / "c", families=target), code)
    assert "expected an object of Family" in done.stdout


def test_families_are_listed_without_their_libraries():
    """Commands look families up before torch is loaded, and drivers that never need it."""
    code = (
        "import sys; from sid_ray.denoisers.registry import families\n"
        "families(); print(*sys.modules)"
    )
    loaded = set(in_a_process(REPOSITORY, code).stdout.split())
    assert "sid_ray.denoisers.families.edm2" in loaded
    assert not loaded & {"torch", "numpy", "diffusers", "transformers", "ray"}
