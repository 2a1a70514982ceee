"""A store that sid_ray does not know is one class and one registration: a run's folder and a data
set lie in it, and no other file of the package knows of it (tests/support/toy_store.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sid_ray.checkpoint.best import find_best, keep_best
from sid_ray.checkpoint.find import find_generator, newest_listed, newest_whole
from sid_ray.checkpoint.manifest import EMA_FOLDER
from sid_ray.config.distill_config import replace
from sid_ray.data.source import data_fingerprint, is_prepared
from sid_ray.errors import UserError
from sid_ray.evaluation.records import add_result, results_in
from sid_ray.groups import GroupPlan
from sid_ray.recipes.registry import recipe
from sid_ray.run_folder import (
    EVALUATIONS,
    RunFolder,
    RunRecord,
    note_record,
    only_driver,
    read_record,
    runs_folder,
    tracking_uri,
)
from sid_ray.storage import lease, waiting
from sid_ray.storage.schemes import SCHEMES, is_elsewhere, register, scheme_of
from sid_ray.storage.store import Store, probe
from sid_ray.tracking.mlflow_sqlite import artifacts_of
from sid_ray.weights.address import parse_source
from sid_ray.weights.folder import load_model
from tests.checkpoint.test_remote_s3 import S3Bench
from tests.data.test_reader import COUNT, ROWS, reader_of
from tests.support import toy_store
from tests.support.data_writer import layout, numbered_images, numbers_of, write_set


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder behind toy://, which is registered for this test."""
    root = tmp_path / "far"
    root.mkdir()
    monkeypatch.setenv(toy_store.ROOT, str(root))
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    register(toy_store.SCHEME)
    yield root
    del SCHEMES[toy_store.SCHEME.prefix]


def test_before_it_is_registered_it_is_no_store(tmp_path):
    with pytest.raises(UserError, match=r"expected a path or s3://BUCKET/PREFIX$"):
        Store.at("toy://runs")


def test_two_stores_of_one_name_are_refused(toy):
    register(toy_store.SCHEME)
    with pytest.raises(UserError, match="two stores have addresses that begin with toy://"):
        register(toy_store.Toy())


def test_it_is_named_where_kinds_are_listed(toy):
    for text in ("gs://x/y", "https://host/x", "builtin:digits"):
        with pytest.raises(UserError, match=r"expected a path or s3://BUCKET/PREFIX or toy://NAME"):
            Store.at(text)
    with pytest.raises(UserError, match=r"no source of kind gs://; known: a path, .*toy://NAME"):
        parse_source("gs://x/y")
    assert is_elsewhere("toy://x") and scheme_of("toy://x") is toy_store.SCHEME
    assert not Store.at("toy://x/").is_local and Store.at("toy://x/").url == "toy://x"
    assert probe(Store.at("toy://runs")) < 60
    assert list(Path(toy / "runs").iterdir()) == [], "the probe leaves nothing"


def test_a_runs_folder_in_it(toy, tmp_path, monkeypatch):
    config = replace(recipe("digits-sid"), output__folder=runs_folder("toy://team/runs"))
    run = RunFolder.of(config)
    run.check()
    with only_driver(run, term_s=3) as mine:
        note_record(mine, RunRecord(config.to_json(), "abc"))
        with monkeypatch.context() as patch, pytest.raises(UserError, match="already being worked"):
            for module in (lease, waiting):
                patch.setattr(module, "place", lambda: "another host")
            only_driver(RunFolder(run.store, tmp_path / "other-host")).__enter__()
        for _ in range(2):
            add_result(mine.store, {"images_seen": 64, "scores": {"FD": 1.0}})
        (mine.local / "log.txt").write_text("said")
    beside = artifacts_of(tracking_uri(config), config.output.folder)
    assert beside.startswith("/"), "MLflow does not know the store"
    assert (toy / "team/runs/digits-sid/log.txt").read_text() == "said"
    assert read_record(run.store).tracker_run_id == "abc"
    assert len(results_in(run.store.read(EVALUATIONS))) == 1
    with only_driver(run) as again:
        assert again.lease.number == 2, "the lease was given back"


def test_checkpoints_in_it_are_found_read_and_checked(toy, tmp_path):
    bench = S3Bench(tmp_path, "toy://team")
    try:
        names = bench.stored(64, 128, 192)
        assert bench.run.folders() == names[1:], "two are kept"
        assert newest_whole(bench.run) == (names[2], [])
        bench.on_another_node()
        assert bench.newest() == (192, 192.0), "fetched from the store"
        found = find_generator(str(bench.run))
        assert found.relative_to(tmp_path / "cache").parts[-2:] == (names[2], EMA_FOLDER)
        load_model(found)
        weights = f"{names[2]}/{EMA_FOLDER}/model.safetensors"
        bench.run.write(weights, b"x" * bench.run.size(weights))
        assert newest_listed(bench.run)[0] == names[2], "by names and sizes"
        (found / "model.safetensors").write_bytes(b"damaged, too")
        newest, (damage,) = newest_whole(bench.run)
        assert newest == names[1] and damage.endswith("does not match its checksum")
        before = find_generator(str(bench.run))
        assert before.parent.name == names[1]
        keep_best(bench.run, before / "model.safetensors", {"images_seen": 192}, print)
        assert find_best(bench.run) == "best_000000000192"
    finally:
        bench.spool.close()


def test_a_store_that_goes_is_waited_for(toy, tmp_path):
    """As S3 is: what its file system raises becomes a StoreError, and is tried again."""
    bench = S3Bench(tmp_path, "toy://team")
    try:
        bench.stored(64)
        toy.rename(tmp_path / "away")
        toy.write_text("a file where the folder was")
        bench.save(128)
        bench.spool.settle()
        assert bench.spool.stored == 64
        toy.unlink()
        (tmp_path / "away").rename(toy)
        bench.spool.flush()
        assert newest_listed(bench.run)[1].images_seen == 128
    finally:
        bench.spool.close()


def test_a_data_set_in_it(toy, tmp_path):
    place = Store.at("toy://sets/numbers")
    images = numbered_images(COUNT)
    here, labels = Store.at(tmp_path / "set"), np.arange(COUNT) % 10
    for store in (place, here):
        write_set(store, "images", layout(COUNT, ROWS, 4), 10, image=images, label=labels)
    data = replace(recipe("digits-sid"), data__name="prepared", data__source=place.url).data
    assert is_prepared(data)
    local = replace(recipe("digits-sid"), data__name="prepared", data__source=here.url).data
    assert data_fingerprint(data) == data_fingerprint(local)
    plan, found = GroupPlan(16, 4, 4, 1), []
    for store in (place, here):
        reader = reader_of(store, plan)
        found.append(reader.samples(0, np.arange(16)))
        reader.closing.set()
        reader.close()
    assert np.array_equal(found[0].image, found[1].image)
    assert np.array_equal(found[0].label, numbers_of(found[0].image) % 10)


INSTALLED = """
[sid_ray.stores]
toy = tests.support.toy_store:SCHEME
"""


def test_an_installed_package_adds_it_for_every_process(tmp_path):
    """By an entry point: the commands know it, and so do the workers that they start."""
    (tmp_path / "far").mkdir()
    package = tmp_path / "site" / "toy_store-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-store\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(INSTALLED)
    paths = [str(tmp_path / "site"), str(Path(__file__).parents[2])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        toy_store.ROOT: str(tmp_path / "far"),
        "SID_RAY_CACHE": str(tmp_path / "cache"),
    }
    command = [
        sys.executable,
        "-m",
        "sid_ray.cli",
        "data",
        "prepare",
        "digits",
        "toy://sets/digits",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((tmp_path / "far/sets/digits/manifest.json").read_text())
    assert manifest["kind"] == "images"
