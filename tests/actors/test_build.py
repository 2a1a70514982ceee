"""What a worker makes of the driver's settings on a node of its own."""

import dataclasses
import os
from pathlib import Path

from sid_ray.actors import build
from sid_ray.actors.build import WorkerSettings, on_this_node
from sid_ray.config import replace
from sid_ray.recipes import recipe
from tests.test_storage_s3 import S3Bench

SETTINGS = WorkerSettings("", "/runs/x", "/not/here", "", "", "key", True, None, None)


def test_networks_that_only_the_driver_has_are_fetched_by_the_node(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "resolve_source", lambda source: tmp_path / source.split("/")[-1])
    bench = S3Bench(tmp_path, bucket)
    (name,) = bench.stored(64)
    bench.spool.close()
    config = replace(
        recipe("digits-sid"),
        teacher__source=f"{bucket}/teacher",
        teacher__initial_generator=str(bench.run),
    )
    found = on_this_node(config, dataclasses.replace(SETTINGS, initial_generator="/nor/this"))
    assert found.teacher_folder == str(tmp_path / "teacher")
    assert Path(found.initial_generator).parts[-2:] == (name, "generator_ema")
    (tmp_path / "teacher").mkdir()
    assert on_this_node(config, found) == found


def test_a_server_of_the_config_is_the_processs(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://before:1")
    monkeypatch.setenv("AWS_REGION", "")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")
    config = replace(recipe("digits-sid"), storage__endpoint_url="http://here:2")
    assert on_this_node(config, SETTINGS) == SETTINGS
    assert os.environ["AWS_ENDPOINT_URL"] == "http://here:2"
