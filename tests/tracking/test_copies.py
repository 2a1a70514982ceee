"""A run's folder that was copied, moved or renamed: what goes on as what, and what MLflow has."""

import os
import shutil
from dataclasses import replace as changed
from pathlib import Path

import mlflow
import pytest

from sid_ray.actors.beside import tracking_target
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import RunFolder, RunRecord, read_record, write_record
from sid_ray.storage.store import Store
from sid_ray.tracking.copies import LOCAL, beside, settle_record
from sid_ray.tracking.journal import carry_over
from sid_ray.tracking.sender import Tracking
from tests.support.tracking import empty_store


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def config_of(folder: Path, name: str, uri: str = "") -> DistillConfig:
    config = replace(recipe("digits-sid"), output__folder=str(folder), output__run=name)
    return replace(config, output__tracking_uri=uri)


def start(folder: Path, name: str, uri: str = "") -> tuple[RunRecord, str]:
    """What a start of a run notes before it works."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it for its process
    config = config_of(folder, name, uri)
    run = RunFolder.of(config)
    run.check()
    run.local.mkdir(parents=True, exist_ok=True)  # as the driver's lock does
    record = read_record(run.store) or RunRecord("")
    record, line = settle_record(record, run, config)
    record = changed(record, config=config.stored())
    write_record(run.store, record)
    return record, line


def told(folder: Path, name: str, *steps: int, uri: str = "") -> tuple[RunRecord, str]:
    """A start that tells MLflow a loss at these steps; its record then, and what it said."""
    if not uri and not (folder / "mlflow.db").exists():
        folder.mkdir(exist_ok=True)
        (folder / "mlflow.db").write_bytes(empty_store())
    record, line = start(folder, name, uri)
    config = config_of(folder, name, uri)
    kept = Tracking(tracking_target(config, record), folder / name)
    for step in steps:
        kept.metrics({"loss": float(step)}, step)
    assert kept.finish() == ""
    record = changed(record, tracker_run_id=kept.run_id)
    write_record(Store.at(folder / name), record)
    return record, line


def losses(uri: str, run_id: str | None) -> list[int]:
    history = mlflow.MlflowClient(uri).get_metric_history(run_id, "loss")
    return [point.step for point in history]


def test_a_copy_of_another_name_is_another_run_that_says_where_it_came_from(tmp_path):
    first, said = told(tmp_path, "a", 1, 2)
    assert said == ""
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy, said = told(tmp_path, "b", 3, 4)
    assert said == (
        f"this is a copy of run 'a' (MLflow run {first.tracker_run_id}): a run of its own from now "
        "on"
    )
    first, said = told(tmp_path, "a", 3)
    assert (said, first.copied_from) == ("", "")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert losses(uri, first.tracker_run_id) == [1, 2, 3]
    assert losses(uri, copy.tracker_run_id) == [1, 2, 3, 4], "all that was told before, and its own"
    found = mlflow.MlflowClient(uri).get_run(copy.tracker_run_id)
    assert found.info.run_name == "b"
    assert str(tmp_path) not in str((found.data.params, found.data.tags)), "it lies beside them"
    tags = {name: found.data.tags[name] for name in ("copied_from", "copied_from_run")}
    assert tags == {"copied_from": "a", "copied_from_run": first.tracker_run_id}
    assert copy.key != first.key, "they share no checkpoint on nodes' disks"
    again, said = told(tmp_path, "b", 5)
    assert (again.key, again.tracker_run_id, said) == (copy.key, copy.tracker_run_id, "")
    assert losses(uri, copy.tracker_run_id) == [1, 2, 3, 4, 5]


def test_a_run_that_was_renamed_is_a_new_one_of_that_name(tmp_path):
    first, _ = told(tmp_path, "a", 1)
    (tmp_path / "a").rename(tmp_path / "b")
    renamed, said = told(tmp_path, "b", 2)
    assert "copy of run 'a'" in said and renamed.tracker_run_id != first.tracker_run_id
    assert losses(f"sqlite:///{tmp_path}/mlflow.db", renamed.tracker_run_id) == [1, 2]
    anew, said = told(tmp_path, "a", 7)
    assert said == "" and anew.key not in (first.key, renamed.key)


def test_a_copied_folder_of_runs_has_its_own_store_and_goes_on_in_it(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first, _ = told(one, "a", 1)
    shutil.copytree(one, two)
    copy, said = told(two, "a", 2)
    assert "copy of run 'a'" in said
    first, _ = told(one, "a", 3)
    assert copy.key != first.key
    assert copy.tracker_run_id == first.tracker_run_id, "the copy of the store has it"
    assert losses(f"sqlite:///{one}/mlflow.db", first.tracker_run_id) == [1, 3]
    assert losses(f"sqlite:///{two}/mlflow.db", copy.tracker_run_id) == [1, 2]
    found = mlflow.MlflowClient(f"sqlite:///{two}/mlflow.db").search_runs(["1"])
    assert [run.info.run_id for run in found] == [copy.tracker_run_id]


def test_copies_that_share_a_server_do_not_share_a_run(tmp_path):
    """As with a server: the store is in neither folder of runs."""
    uri = f"sqlite:///{tmp_path}/server.db"
    (tmp_path / "server.db").write_bytes(empty_store())
    first, _ = told(tmp_path / "one", "a", 1, uri=uri)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy, _ = told(tmp_path / "two", "a", 2, uri=uri)
    first, _ = told(tmp_path / "one", "a", 2, 3, uri=uri)
    assert losses(uri, first.tracker_run_id) == [1, 2, 3]
    assert losses(uri, copy.tracker_run_id) == [1, 2]
    assert copy.copied_from_run == first.tracker_run_id


def test_a_moved_folder_of_runs_keeps_its_runs(tmp_path):
    uri = f"sqlite:///{tmp_path}/server.db"
    (tmp_path / "server.db").write_bytes(empty_store())
    first, _ = told(tmp_path / "one", "a", 1, uri=uri)
    (tmp_path / "one").rename(tmp_path / "two")
    moved, said = told(tmp_path / "two", "a", 2, uri=uri)
    assert (said, moved.key, moved.tracker_run_id) == ("", first.key, first.tracker_run_id)
    assert losses(uri, moved.tracker_run_id) == [1, 2]
    tags = mlflow.MlflowClient(uri).get_run(moved.tracker_run_id).data.tags
    assert tags["folder"] == f"{tmp_path}/two"


def test_a_link_to_a_run_is_the_run(tmp_path):
    first, _ = start(tmp_path, "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    linked, said = start(tmp_path, "b")
    assert (said, linked.key, linked.name) == ("", first.key, "a")
    (tmp_path / "other").symlink_to(tmp_path)
    assert start(tmp_path / "other", "a")[0].key == first.key


def test_a_run_of_an_earlier_version_is_known_by_its_config(tmp_path):
    config = config_of(tmp_path, "a")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_record(Store.at(tmp_path / name), RunRecord(config.to_json(), "id", "key"))
    assert start(tmp_path, "a")[0].key == "key"
    copy, said = start(tmp_path, "b")
    assert copy.key != "key" and "copy of run 'a' (MLflow run id)" in said


def test_local_checkpoints_in_a_runs_folder_are_the_copys_too(tmp_path):
    first, _ = start(tmp_path, "a")
    (tmp_path / "a" / LOCAL / first.key / "checkpoint_1").mkdir(parents=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy, _ = start(tmp_path, "b")
    assert [p.name for p in (tmp_path / "b" / LOCAL).iterdir()] == [copy.key]
    assert (tmp_path / "a" / LOCAL / first.key / "checkpoint_1").is_dir()


def test_a_copied_prefix_in_s3_is_a_run_of_its_own(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    one = config_of(tmp_path, "a")
    one = replace(one, output__folder=f"{bucket}/one")
    two = replace(one, output__folder=f"{bucket}/two")
    first, _ = settle_record(RunRecord(""), RunFolder.of(one), one)
    write_record(Store.at(f"{bucket}/two/a"), changed(first, config=one.stored()))
    copy, said = settle_record(read_record(Store.at(f"{bucket}/two/a")), RunFolder.of(two), two)
    assert copy.key != first.key and "copy of run 'a'" in said
    assert read_record(Store.at(f"{bucket}/two/a")) == copy
    assert settle_record(copy, RunFolder.of(two), two) == (copy, "")


def test_nothing_of_a_run_names_the_folder_that_it_lies_in(tmp_path):
    start(tmp_path, "a")
    texts = [path.read_text() for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert texts and not [text for text in texts if str(tmp_path) in text]


def test_a_copy_leaves_registered_models_and_children_to_the_first(tmp_path):
    for name, key in (("a", "first"), ("b", "copy")):
        kept = Tracking(
            changed(tracking_target(config_of(tmp_path, name), RunRecord("{}")), key="first"),
            tmp_path / name,
            run=object(),
            rest_s=60.0,
        )
        kept.child("other")
        kept.model(tmp_path / "net", "registered", 5, "a net", {})
        kept.metrics({"loss": 1.0}, 1)
        kept._journal.close()
        carry_over(tmp_path / name, key, keep_sent=False)
        again = Tracking(
            changed(tracking_target(config_of(tmp_path, name), RunRecord("{}")), key=key),
            tmp_path / name,
            run=object(),
            rest_s=60.0,
        )
        assert [record.kind for record in again._pending] == ["model", "metrics"]
        assert again._pending[0].values["name"] == ""
        again._journal.close()


def test_another_runs_checkpoint_is_sought_beside_the_run_first(tmp_path):
    old = f"{tmp_path}/one/donor/checkpoint_3"
    run = Store.at(tmp_path / "two" / "run")
    assert beside(run, old) == old
    (tmp_path / "two" / "donor" / "checkpoint_3").mkdir(parents=True)
    (tmp_path / "two" / "donor" / "checkpoint_3" / "manifest.json").touch()
    assert beside(run, old) == f"{tmp_path}/two/donor/checkpoint_3"
