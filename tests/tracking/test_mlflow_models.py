"""Generators in MLflow: files, versions of a registered model, and that nothing is there twice."""

import json
from dataclasses import replace

import mlflow
import pytest
import requests
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import FEATURE_DISABLED, PERMISSION_DENIED

from sid_ray.config.distill_config import DistillConfig
from sid_ray.config.distill_config import replace as changed
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.tensor_files.tensors import read_safetensors
from sid_ray.tracking import mlflow_artifacts, sender
from sid_ray.tracking.sender import Model, Tracking, send_report
from sid_ray.weights.description import ModelDescription, save_model
from tests.support.mlflow_server import mlflow_server
from tests.support.tracking import target


def made(folder, value):
    save_model(folder, {"weight": torch.full((1000,), value)}, ModelDescription("edm", {}))
    (folder / "README.md").write_text(f"# card {value}\n")
    return folder


def versions(where):
    client = mlflow.MlflowClient(where.uri)
    return sorted(client.search_model_versions("name = 'digits'"), key=lambda v: int(v.version))


def downloaded(where, version, to):
    """As somebody elsewhere would get it."""
    mlflow.set_tracking_uri(where.uri)
    found = mlflow.artifacts.download_artifacts(f"models:/digits/{version}", dst_path=str(to))
    return read_safetensors(to / "model.safetensors")["weight"], found


def check_two_versions(where, folder):
    """Told, told again, resumed, told again: two versions, each with its own weights."""
    for images_seen in (640, 640, 1280):
        kept = Tracking(where, folder)
        kept.scores({"FD-digits-cnn": images_seen / 100, "IS": 2.0}, images_seen)
        made(folder / "generator", images_seen / 1)
        kept.model(folder / "generator", "digits", images_seen, "# card")
        assert kept.finish() == ""
    one, two = versions(where)
    key = where.key
    scores = {"FD-digits-cnn": "6.4", "IS": "2"}
    assert one.tags == {"run_key": key, "images_seen": "640", **scores}
    assert two.tags == {"run_key": key, "images_seen": "1280", **scores, "FD-digits-cnn": "12.8"}
    for version, value in ((one, 640), (two, 1280)):
        assert (version.run_id, version.status) == (kept.run_id, "READY")
        assert version.description == "# card"
        to = folder / f"downloaded{version.version}"
        to.mkdir()
        assert downloaded(where, version.version, to)[0].unique().tolist() == [value]
        assert json.loads((to / "model.json").read_text())["family"] == "edm"
        assert (to / "README.md").read_text() == f"# card {value / 1}\n"
    client = mlflow.MlflowClient(where.uri)
    # What MLflow's own pages ask for: the list of models, and the versions of one.
    (model,) = client.search_registered_models("tags.`mlflow.prompt.is_prompt` != 'true'")
    assert (model.name, model.latest_versions[0].version) == ("digits", two.version)


def test_a_generator_is_a_version_of_a_registered_model(tmp_path):
    check_two_versions(target(tmp_path), tmp_path)


@pytest.mark.slow
def test_the_same_with_a_server(tmp_path):
    with mlflow_server(tmp_path) as server:
        check_two_versions(target(tmp_path, uri=server.uri), tmp_path)


def lose_answers(monkeypatch, name, failed):
    """The first two calls are made, and fail all the same."""
    real = getattr(mlflow.MlflowClient, name)

    def lost(self, *arguments, **more):
        found = real(self, *arguments, **more)
        if failed.count(name) < 2:
            failed.append(name)
            raise ConnectionError("nobody answers")
        return found

    monkeypatch.setattr(mlflow.MlflowClient, name, lost)


def test_confirmations_that_are_lost_leave_one_of_each(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "pause_s", lambda tries: 0.01)
    calls = ("log_artifact", "create_registered_model", "create_model_version")
    failed: list[str] = []
    for name in calls:
        lose_answers(monkeypatch, name, failed)
    where, generator = target(tmp_path), made(tmp_path / "generator", 1.0)
    model = Model(generator, "digits", 640, "card", {})
    run_id, left = send_report(where, tmp_path, {}, [], 640, model=model)
    assert left == ""
    assert sorted(set(failed)) == sorted(calls)
    assert len(versions(where)) == 1
    found = mlflow.MlflowClient(where.uri).list_artifacts(run_id, "generator/000000000640")
    assert [(i.path.rpartition("/")[2], i.file_size) for i in found] == [
        (file.name, file.stat().st_size) for file in sorted(generator.iterdir())
    ]


def test_weights_that_are_there_are_not_sent_again(tmp_path, monkeypatch):
    where, generator = target(tmp_path), made(tmp_path / "generator", 1.0)
    sent = []
    real = mlflow.MlflowClient.log_artifact

    def log_artifact(self, run_id, file, place=None):
        sent.append(file.rpartition("/")[2])
        real(self, run_id, file, place)

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", log_artifact)
    for _ in range(2):
        model = Model(generator, "", 640, "")
        assert send_report(where, tmp_path, {}, [], 640, model=model)[1] == ""
    assert sent == list(mlflow_artifacts.MODEL_FILES)
    assert mlflow.MlflowClient(where.uri).search_registered_models() == []


def test_other_runs_have_versions_of_their_own(tmp_path):
    generator = made(tmp_path / "generator", 1.0)
    for key in ("one", "two"):
        where = replace(target(tmp_path), key=key)
        model = Model(generator, "digits", 640, key)
        assert send_report(where, tmp_path / key, {}, [], 640, model=model)[1] == ""
    assert [version.tags["run_key"] for version in versions(where)] == ["one", "two"]


def too_large():
    answer = requests.Response()
    answer.status_code = 413
    return requests.HTTPError("413 Client Error: too large", response=answer)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("create_registered_model", MlflowException("no registry", FEATURE_DISABLED)),
        ("create_model_version", MlflowException("not yours", PERMISSION_DENIED)),
        ("log_artifact", too_large()),
    ],
)
def test_a_model_that_cannot_be_there_holds_up_nothing(tmp_path, monkeypatch, call, error):
    def refuse(self, *arguments, **more):
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, call, refuse)
    told: list[str] = []
    kept = Tracking(target(tmp_path), tmp_path, told.append)
    kept.model(made(tmp_path / "generator", 1.0), "digits", 640, "")
    kept.metrics({"loss": 1.0}, 640)
    assert kept.finish(5.0) == ""
    assert told == [f"warning: record 1 (model) is not in MLflow: {error}"]


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    told: list[str] = []
    kept = Tracking(target(tmp_path), tmp_path, told.append)
    kept.model(tmp_path / "none", "digits", 640, "")
    kept.metrics({"loss": 1.0}, 640)
    assert kept.finish() == ""
    assert [line.partition(":")[2] for line in told] == [
        f" record 1 (model) is not in MLflow: {tmp_path}/none/model.safetensors is not there any "
        "more"
    ]


def test_large_weights_have_time(monkeypatch):
    monkeypatch.delenv(mlflow_artifacts.WAIT, raising=False)
    environment = mlflow_artifacts.os.environ
    with mlflow_artifacts.time_for(4 << 30):
        assert environment[mlflow_artifacts.WAIT] == "1039"
    assert mlflow_artifacts.WAIT not in environment
    monkeypatch.setenv(mlflow_artifacts.WAIT, "60")
    with mlflow_artifacts.time_for(1000):
        assert environment[mlflow_artifacts.WAIT] == "60"
    assert environment[mlflow_artifacts.WAIT] == "60"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"output__register_model": "a/b"}, "output.register_model is 'a/b'; it may not contain"),
        ({"output__register_model": "a", "output__log_model": False}, "needs the weights"),
        ({"output__register_model": " "}, "output.register_model is ' '; it must be a name"),
        ({"output__register_model": "a" * 251}, "it must be a name of at most 250 characters"),
        ({"output__experiment": ""}, "output.experiment is ''; it must be a name"),
        ({"output__experiment": "e" * 251}, "it must be a name of 1 to 250 characters"),
    ],
)
def test_a_name_that_mlflow_would_refuse_is_refused_at_the_start(fields, words):
    with pytest.raises(UserError, match=words):
        changed(recipe("digits-sid"), **fields).check()
    assert DistillConfig().output.register_model == ""
