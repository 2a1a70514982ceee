"""Names of what is served, and what is told of it before it is loaded."""

import dataclasses

import pytest
from ray import serve

from sid_ray.errors import UserError
from sid_ray.serving import application
from sid_ray.serving.contract import Teacher
from sid_ray.serving.described import Offer, offers_of, told_model
from sid_ray.weights.description import save_model
from sid_ray.weights.folder import load_model
from tests.support.generators import write_generator


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_generator(tmp_path_factory.mktemp("folder") / "digits", "digits-sid")


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    return write_generator(tmp_path_factory.mktemp("folder") / "emoji", "emoji-lsg")


def names(*typed: str) -> list[str]:
    return [offer.name for offer in offers_of(typed)]


def test_a_run_is_called_as_its_folder():
    assert names("runs/a") == names("runs/a/best") == names("s3://bucket/runs/a") == ["a"]
    assert names("runs/a/checkpoint_000000000640_x") == ["a"]
    assert names("hf://owner/repo") == ["repo"]
    assert names("https://host/some/net.safetensors") == ["net"]
    assert names(".") == ["generator"]


def test_runs_that_are_called_alike_are_told_apart():
    assert names("runs/a", "old/a", "runs/a") == ["a", "old-a", "a-2"]
    assert names("x=runs/a", "runs/x") == ["x", "x-2"]
    assert offers_of(["x=runs/a=b"]) == [Offer("x", "runs/a=b")]
    assert offers_of(["runs/lr=0.1"]) == [Offer("lr-0.1", "runs/lr=0.1")]
    with pytest.raises(UserError, match="two runs are called x"):
        offers_of(["x=a", "x=b"])


@pytest.mark.parametrize("typed", ["my run=runs/d", "=runs/d", "-x=runs/d", "ä" * 101 + "=runs/d"])
def test_a_name_that_is_none_is_refused_in_words(typed):
    with pytest.raises(UserError, match="before = is no name: letters, digits"):
        offers_of([typed])


def test_what_is_told_of_digits(digits):
    told = told_model(Offer("d", str(digits)))
    assert (told.name, told.condition, tuple(told.size)) == ("d", "class", (8, 8))
    assert list(told.classes) == [str(digit) for digit in range(10)]
    assert list(told.steps) == [1] and told.base == "builtin:digits-teacher"
    assert told.teacher == Teacher(evaluations=35, label="35 evaluations")
    assert told.images_seen is None and told.scores == {}


def test_what_is_told_of_a_generator_that_reads_text(emoji):
    told = told_model(Offer("e", str(emoji)))
    assert (told.condition, tuple(told.size), list(told.classes)) == ("prompt", (16, 16), [])
    assert told.teacher is not None and told.teacher.evaluations >= 50


def test_a_generator_that_names_no_teacher_is_served_without_one(digits, tmp_path):
    network, description = load_model(digits)
    bare = dataclasses.replace(description, notes={})
    save_model(tmp_path / "bare", network.state_dict(), bare)
    assert told_model(Offer("bare", str(tmp_path / "bare"))).teacher is None


def test_no_path_of_this_machine_is_told(tmp_path, digits):
    network, description = load_model(digits)
    notes = {"teacher": str(tmp_path / "secret-place" / "teacher")}
    save_model(tmp_path / "g", network.state_dict(), dataclasses.replace(description, notes=notes))
    told = told_model(Offer("g", str(tmp_path / "g")))
    assert told.base == "teacher" and "secret-place" not in told.model_dump_json()


def test_an_application_is_built_of_a_clusters_config(digits, monkeypatch):
    monkeypatch.setattr(application, "offered_by_cluster", lambda: {"CPU": 2.0})
    monkeypatch.setattr(application, "cpus_of_nodes", lambda: [2.0])
    assert isinstance(application.build({"sources": [f"d={digits}"]}), serve.Application)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"devise": "cuda"}, "devise"),
        ({"device": "gpu"}, "device is 'gpu'; it "),
        ({"replicas": "few"}, "--replicas 'few'"),
        ({"batch": "many"}, "--batch 'many': expected auto, or a number from 1 to 1024"),
        ({"batch": 0}, "--batch '0'"),
        ({"limits": {"imags": 3}}, "limits.imags"),
        ({"limits": {"images": 9, "queued_images": 8}}, "queued_images is 8 and images 9"),
        ({"sources": []}, "sources"),
    ],
)
def test_wrong_arguments_of_a_config_are_found_before_anything_is_opened(wrong, words):
    with pytest.raises(UserError) as refused:
        application.build({"sources": ["/nowhere"]} | wrong)
    assert words in str(refused.value) and "\n" not in str(refused.value)
