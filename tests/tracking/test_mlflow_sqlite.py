"""MLflow's store beside the runs, where its folder was moved or copied."""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking._tracking_service import utils

from sid_ray.storage.places import absolute_uri
from sid_ray.tracking.mlflow_run import MlflowRun
from sid_ray.tracking.mlflow_sqlite import artifacts_of, check_writable, look_in_database, put_right
from sid_ray.tracking.sender import Tracking
from tests.support.tracking import empty_store, target

ROOT = Path(__file__).parents[2]


def told(folder: Path, text: str = "1") -> str:
    """A run in the store of a folder, with a file and a version of a model; MLflow's id of it."""
    where = target(folder)
    where = replace(where, artifacts=artifacts_of(where.uri, str(folder)))
    run = folder / "run"
    (run / "model").mkdir(parents=True, exist_ok=True)
    (run / "model" / "model.safetensors").write_text(text)
    utils._artifact_repos_cache.clear()  # by a run's id: as in a process of its own
    kept = Tracking(where, run)
    kept.model(run / "model", "net", int(text), "a net")
    kept.status("FINISHED")
    assert kept.finish() == ""
    return kept.run_id


def weights(folder: Path, version: int) -> str:
    """The weights of a model's version, as anybody reads them who names the folder's store."""
    uri = f"sqlite:///{folder}/mlflow.db"
    address = mlflow.MlflowClient(uri).get_model_version("net", str(version)).source
    return Path(address, "model.safetensors").read_text()


@pytest.fixture
def one(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    told(folder)
    return folder


KILLED_AMIDST = """
import os, pathlib, sys
from mlflow.store.db import utils
from tests.support.tracking import target
from sid_ray.tracking.mlflow_run import MlflowRun
utils._upgrade_db = lambda *_: os.kill(os.getpid(), 9)  # which follows the first tables
folder = pathlib.Path(sys.argv[1])
MlflowRun(target(folder, uri=f"sqlite:///{folder}/mlflow.db"), folder, print).open()
"""


def test_a_process_killed_while_tables_are_made_leaves_nothing_in_the_way(tmp_path):
    """MLflow makes a store's tables for seconds; of a half-made one it says that it is of an older
    version, and a run that was killed then could not go on.
    """
    half, store = tmp_path / "mlflow.db.new", tmp_path / "mlflow.db"
    done = subprocess.run([sys.executable, "-c", KILLED_AMIDST, str(tmp_path)], cwd=ROOT)
    assert done.returncode == -9
    assert half.stat().st_size and not store.exists()
    run = MlflowRun(target(tmp_path, uri=f"sqlite:///{store}"), tmp_path, print)
    run.open()
    assert run.run_id
    assert store.exists() and not half.exists()


@pytest.mark.parametrize("how", ["copied", "moved", "copied without the files"])
def test_a_moved_folder_works_from_where_it_is(tmp_path, one, how):
    """What is told after the move lies beside the store; nothing names or changes the old place."""
    two = tmp_path / "two"
    if how == "moved":
        one.rename(two)
    else:
        leave = ["mlartifacts"] if "without" in how else []
        shutil.copytree(one, two, ignore=lambda *_: leave)
    before = {p: p.read_bytes() for p in one.rglob("*") if p.is_file()}
    told(two, "2")
    assert weights(two, 2) == "2"
    if how != "copied without the files":
        assert weights(two, 1) == "1"
    assert {p: p.read_bytes() for p in one.rglob("*") if p.is_file()} == before
    with closing(sqlite3.connect(two / "mlflow.db")) as store:
        assert not [line for line in store.iterdump() if f"{one}/" in line]


def test_what_is_done_is_said_once(tmp_path, one):
    two = shutil.copytree(one, tmp_path / "two")
    database = two / "mlflow.db"
    assert put_right(database) == (
        f"{database} was moved or copied: MLflow's artifacts are now in {two}/mlartifacts"
    )
    assert put_right(database) == put_right(one / "mlflow.db") == ""
    three = tmp_path / "three"
    three.mkdir()
    shutil.copy(database, three)
    assert put_right(three / "mlflow.db").endswith(
        f"copy those of earlier runs there, from {two}/mlartifacts"
    )


def test_the_same_folder_by_a_link_is_not_another_place(tmp_path, one):
    (tmp_path / "link").symlink_to(one)
    assert put_right(tmp_path / "link" / "mlflow.db") == ""


def test_a_place_that_a_person_chose_stays(tmp_path):
    chosen = tmp_path / "big disk" / "mlartifacts"
    chosen.mkdir(parents=True)
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.MlflowClient(uri).create_experiment("mine", artifact_location=str(chosen))
    assert put_right(tmp_path / "mlflow.db") == ""
    assert look_in_database(tmp_path / "mlflow.db", "mine").artifacts == str(chosen)


def test_a_store_that_is_not_there_or_empty_is_left_alone(tmp_path):
    database = tmp_path / "mlflow.db"
    assert put_right(database) == "" and look_in_database(database, "x") is None
    database.touch()
    assert put_right(database) == "" and look_in_database(database, "x") is None
    assert list(tmp_path.iterdir()) == [database] and database.stat().st_size == 0


def test_addresses_mean_the_same_in_every_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///a/x.db?timeout=3") == f"sqlite:///{tmp_path}/a/x.db?timeout=3"
    for same in ("sqlite:////a/x.db", "sqlite://", "sqlite:///:memory:", "http://host:1"):
        assert absolute_uri(same) == same
    assert artifacts_of(f"sqlite:///{tmp_path}/x.db", "/runs") == f"{tmp_path}/mlartifacts"
    assert artifacts_of(f"sqlite:///{tmp_path}/x.db", "s3://b/runs") == "s3://b/runs/mlartifacts"
    assert artifacts_of("postgresql://host/db", "/runs") == "/runs/mlartifacts"


def test_the_nearest_folder_that_is_there_is_tried(tmp_path):
    check_writable(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as refused:
        check_writable(tmp_path / "file" / "mlartifacts")
    assert refused.value.filename == str(tmp_path / "file")
