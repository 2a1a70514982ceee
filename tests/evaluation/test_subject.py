"""What is evaluated: found by any name, with what its run says of it."""

import dataclasses
import json
import shutil

import pytest

from sid_ray.checkpoint.best import keep_best
from sid_ray.checkpoint.manifest import EMA_FOLDER
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.errors import UserError
from sid_ray.evaluation.subject import find_subject, sampler_settings, schedule_config
from sid_ray.run_folder import RunRecord, write_record
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.store import Store
from sid_ray.weights.description import WEIGHTS
from tests.checkpoint.test_manifest import write

CONFIG = replace(
    DistillConfig(), teacher__source="builtin:digits-teacher", evaluation__metrics="fd,pr"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two checkpoints, and the first one's generator as the best."""
    folder = tmp_path_factory.mktemp("made") / "run"
    first, _, _ = write(folder, 64)
    write(folder, 128, seed=1)
    write_record(Store.at(folder), RunRecord(CONFIG.to_json()))
    weights = first / EMA_FOLDER / WEIGHTS
    result = {"images_seen": 64, "weights_sha256": file_sha256(weights)}
    keep_best(Store.at(folder), weights, result, print)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(made, tmp_path / "run")


def digest_in(folder) -> str:
    return file_sha256(folder / EMA_FOLDER / WEIGHTS)


def test_a_run_is_its_newest_checkpoint(run):
    found = find_subject(str(run))
    assert found.images_seen == 128
    assert found.sha256 == digest_in(next(run.glob("checkpoint_*128_*")))
    assert found.config == CONFIG
    assert found.run == str(run)
    assert found.is_generator and found.num_steps == 1
    assert found.shape == (1, 8, 8) and found.label_dim == 10


@pytest.mark.parametrize("inside", ["", f"/{EMA_FOLDER}"])
def test_a_checkpoint_belongs_to_its_run(run, inside):
    folder = next(run.glob("checkpoint_*064_*"))
    found = find_subject(f"{folder}{inside}")
    assert (found.images_seen, found.sha256) == (64, digest_in(folder))
    assert (found.config, found.run) == (CONFIG, str(run))


def test_best_is_found_by_its_alias_and_its_name(run):
    named = next(run.glob("best_*"))
    for source in (f"{run}/best", str(named)):
        found = find_subject(source)
        assert (found.images_seen, found.network) == (64, named)
        assert (found.config, found.run) == (CONFIG, str(run))


def test_networks_of_no_run_have_no_config(run, tmp_path):
    teacher = find_subject("builtin:digits-teacher")
    assert (teacher.config, teacher.run, teacher.images_seen) == (None, "", None)
    assert not teacher.is_generator
    copy = tmp_path / "copy"
    shutil.copytree(next(run.glob("best_*")), copy)
    for source in (copy, copy / WEIGHTS):
        found = find_subject(str(source))
        assert (found.config, found.images_seen) == (None, None)
        assert found.sha256 == find_subject(f"{run}/best").sha256


def test_a_checkpoint_apart_from_its_run_has_its_own_config(run, tmp_path):
    folder = next(run.glob("checkpoint_*064_*"))
    shutil.copytree(folder, tmp_path / folder.name)
    found = find_subject(str(tmp_path / folder.name))
    assert (found.images_seen, found.run) == (64, "")
    assert found.config == DistillConfig()  # of its manifest


def test_changed_weights_are_named(run):
    for folder in (next(run.glob("checkpoint_*064_*")) / EMA_FOLDER, next(run.glob("best_*"))):
        file = folder / WEIGHTS
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match="do not match their checksum"):
            find_subject(str(folder))


def test_what_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; name a run, a checkpoint"):
        find_subject(str(tmp_path / "nowhere"))
    shutil.rmtree(next(run.glob("best_*")))
    with pytest.raises(UserError, match="has no best generator"):
        find_subject(f"{run}/best")
    with pytest.raises(UserError, match="no built-in network"):
        find_subject("builtin:digit-teacher")


def test_settings_name_what_decides_the_images(run):
    generator, teacher = find_subject(str(run)), find_subject("builtin:digits-teacher")
    assert sampler_settings(generator, CONFIG) == {
        "sampler": "generator", "evaluations": 1, "sigma": 2.5
    }  # fmt: skip
    config = replace(CONFIG, evaluation__teacher_steps=5)
    found = sampler_settings(teacher, config)
    assert found["sampler"] == "heun" and found["evaluations"] == 9


def test_a_text_teacher_has_the_noise_levels_of_its_scheduler():
    teacher = find_subject("builtin:emoji-teacher")
    path = teacher.network / "scheduler" / "scheduler_config.json"
    schedule, written = schedule_config(teacher), json.loads(path.read_text())
    assert schedule.kind == "vp" and teacher.reads_text
    assert (schedule.beta_end, schedule.beta_schedule) == (
        written["beta_end"], written["beta_schedule"]
    )  # fmt: skip
    assert teacher.home == "builtin:emoji-teacher"
    config = dataclasses.replace(CONFIG, schedule=schedule)
    guided = replace(config, evaluation__teacher_steps=4, evaluation__teacher_guidance=3.0)
    assert sampler_settings(teacher, guided)["evaluations"] == 8
