"""Weight sources in a real S3 server."""

import hashlib
import os
import shutil

import pytest

from sid_ray.errors import UserError
from sid_ray.storage.s3 import set_endpoint
from sid_ray.storage.store import Store
from sid_ray.weights.networks import describe
from sid_ray.weights.sources import ASSETS, resolve_source

TEACHER = ASSETS / "digits-teacher"


@pytest.fixture
def stored(bucket, tmp_path, monkeypatch):
    """The address of a network's folder in a bucket; the cache is empty."""
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore tries a dead server for seconds
    store = Store.at(f"{bucket}/teachers/digits")
    for path in TEACHER.iterdir():
        store.put(path, path.name)
    return store


def test_a_folder_is_fetched_once(stored, tmp_path):
    found = resolve_source(stored.url)
    assert describe(found) == describe(TEACHER)
    for name in ("model.json", "model.safetensors"):
        assert (found / name).read_bytes() == (TEACHER / name).read_bytes()
    before = (found / "model.safetensors").stat().st_mtime_ns
    assert resolve_source(stored.url) == found
    assert (found / "model.safetensors").stat().st_mtime_ns == before


def test_a_copy_serves_when_the_server_does_not(stored, monkeypatch, capsys):
    found = resolve_source(stored.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert resolve_source(stored.url) == found
    assert "the copy is used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "access"),
        ("AWS_ACCESS_KEY_ID", "nobody", "access"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "answer"),
    ],
)
def test_what_is_wrong_is_one_line(stored, monkeypatch, name, value, what):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=what) as caught:
        resolve_source(stored.url)
    assert "\n" not in str(caught.value) and "devsecret" not in str(caught.value)


def test_what_is_not_there_is_named(stored, bucket):
    with pytest.raises(UserError, match=f"{bucket}/none"):
        resolve_source(f"{bucket}/none")
    with pytest.raises(UserError, match="none-such-bucket"):
        resolve_source("s3://none-such-bucket/x.pkl")


def test_a_folder_with_a_cut_file_is_fetched_anew(stored):
    found = resolve_source(stored.url)
    shutil.rmtree(found)
    assert (resolve_source(stored.url) / "model.json").is_file()


def test_an_object_is_fetched_once_and_anew_when_it_has_changed(stored):
    weights = f"{stored.url}/model.safetensors"
    data = (TEACHER / "model.safetensors").read_bytes()
    path = resolve_source(weights)
    assert path.read_bytes() == data
    before = path.stat().st_mtime_ns
    assert resolve_source(weights) == path
    assert path.stat().st_mtime_ns == before
    stored.write("model.safetensors", b"new")
    assert resolve_source(weights).read_bytes() == b"new"


def test_a_checksum_asks_for_one_object(stored):
    weights = f"{stored.url}/model.safetensors"
    digest = hashlib.sha256((TEACHER / "model.safetensors").read_bytes()).hexdigest()
    assert resolve_source(f"{weights}#sha256={digest}").is_file()
    with pytest.raises(UserError, match=f"{digest}, expected {'0' * 64}"):
        resolve_source(f"{weights}#sha256={'0' * 64}")
    with pytest.raises(UserError, match="teachers/digits does not exist"):
        resolve_source(f"{stored.url}#sha256={digest}")


def test_of_a_prefix_only_the_network_is_fetched(stored):
    stored.write("notes.txt", b"")
    stored.write("deeper/model.json", b"{}")
    folder = resolve_source(stored.url + "/")
    names = {path.name for path in folder.rglob("*") if not path.name.endswith(".lock")}
    assert names == {f"model.{end}" for end in ("json", "safetensors", "json.json")} | {
        "model.safetensors.json"
    }
    with pytest.raises(UserError, match=r"a folder with model\.json"):
        resolve_source(stored.url.rpartition("/")[0])


def test_the_endpoint_and_the_region_are_those_of_the_runs_store(stored, monkeypatch):
    """What --storage.endpoint-url sets; the address of the environment is the wrong one."""
    server = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "nowhere")
    set_endpoint(server, "us-east-1")
    assert resolve_source(stored.url).is_dir()
