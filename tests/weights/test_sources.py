"""Sources: fetched once, resumed, checked, and never at the price of a credential."""

from __future__ import annotations

import errno
import hashlib
import json
import threading

import pytest

from sid_ray.errors import UserError
from sid_ray.weights import cache, fetch, networks, remotes
from sid_ray.weights.address import parse_source, source_label
from sid_ray.weights.folder import ModelDescription, save_model
from sid_ray.weights.sources import builtin_models, resolve_source
from tests.support import weights_writer as writer
from tests.weights.server import MadeUpS3, NoCredentialsError, serving

DATA = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cache, "PAUSE_S", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def server():
    with serving() as running:
        running.files["/w.pkl"] = DATA
        yield running


@pytest.fixture
def s3(monkeypatch):
    made_up = MadeUpS3()
    monkeypatch.setattr(fetch, "s3_filesystem", lambda: made_up)
    monkeypatch.setattr(remotes, "S3_CHUNK", 1 << 20)
    return made_up


def refused(source: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve_source(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Local ones


def test_paths_and_builtins(tmp_path):
    name = builtin_models()[0]
    assert (resolve_source(f"builtin:{name}") / "model.json").is_file()
    assert "there are:" in refused("builtin:nothing")
    file = tmp_path / "w.pkl"
    file.write_bytes(DATA)
    assert resolve_source(f"{file}#sha256={SHA256.upper()}") == file
    assert "is another file" in refused(f"{file}#sha256={'0' * 64}")
    assert "no network at" in refused(str(tmp_path))
    assert "64 hexadecimal digits" in refused(f"{file}#sha256=12")
    assert "no source of kind ftp://" in refused("ftp://host/w.pkl")


def test_labels_hold_no_credentials():
    secret = "https://me:secret@host:8443/w.pkl?X-Amz-Signature=secret#sha256=" + SHA256
    assert source_label(secret) == "https://host:8443/w.pkl"
    assert parse_source(secret).sha256 == SHA256


# https


def test_fetched_once(server, own_cache):
    path = resolve_source(server.url + "/w.pkl")
    assert path.read_bytes() == DATA and path.is_relative_to(own_cache)
    record = json.loads(path.with_name("w.pkl.json").read_text())
    assert (record["size"], record["sha256"]) == (len(DATA), SHA256)
    sent = server.sent
    assert resolve_source(server.url + "/w.pkl") == path
    assert server.sent == sent and "If-None-Match" in server.requests[-1][1]
    assert not list(path.parent.glob("*.part*"))


def test_a_changed_file_is_fetched_anew(server):
    resolve_source(server.url + "/w.pkl")
    server.files["/w.pkl"] = b"new"
    assert resolve_source(server.url + "/w.pkl").read_bytes() == b"new"


def test_with_a_checksum_the_server_is_not_asked_again(server):
    resolve_source(f"{server.url}/w.pkl#sha256={SHA256}")
    asked = len(server.requests)
    resolve_source(f"{server.url}/w.pkl#sha256={SHA256}")
    assert len(server.requests) == asked


def test_wrong_checksum_leaves_nothing(server, own_cache):
    line = refused(f"{server.url}/w.pkl#sha256={'0' * 64}")
    assert SHA256 in line and "0" * 64 in line
    assert not [p for p in own_cache.rglob("w.pkl*") if p.suffix in (".pkl", ".part")]


def test_broken_connections_are_resumed(server):
    server.cuts = [100_000, 0, 2_000_000, 5]  # bytes until each connection breaks
    assert resolve_source(server.url + "/w.pkl").read_bytes() == DATA
    starts = [headers.get("Range") for _, headers in server.requests]
    assert starts == [None, "bytes=100000-", "bytes=100000-", "bytes=2100000-", "bytes=2100005-"]
    assert server.sent == len(DATA)


def test_a_later_call_goes_on(server, monkeypatch):
    monkeypatch.setattr(cache, "ATTEMPTS", 1)
    server.cuts = [1_000_000]
    line = refused(server.url + "/w.pkl")
    assert "cannot be reached" in line and "goes on from there" in line
    assert resolve_source(f"{server.url}/w.pkl#sha256={SHA256}").read_bytes() == DATA
    assert server.sent == len(DATA)


@pytest.mark.parametrize("missing", ["ranges", "etags"])
def test_servers_that_cannot_resume_start_anew(missing, server):
    setattr(server, missing, False)
    server.cuts = [1_000_000]
    assert resolve_source(server.url + "/w.pkl").read_bytes() == DATA


def test_a_file_that_changes_while_it_is_fetched(server, monkeypatch):
    monkeypatch.setattr(cache, "ATTEMPTS", 1)
    server.cuts = [1_000_000]
    refused(server.url + "/w.pkl")
    server.files["/w.pkl"] = DATA[::-1]
    assert resolve_source(server.url + "/w.pkl").read_bytes() == DATA[::-1]


def test_failures_in_one_line(server):
    assert "not found" in refused(server.url + "/other.pkl")
    server.status = {"/denied": 403, "/broken": 500, "/odd": 418}
    assert "no access" in refused(server.url + "/denied")
    assert "HTTP 500" in refused(server.url + "/broken")
    assert "HTTP 418" in refused(server.url + "/odd")
    assert "add #sha256" in refused("http://example.org/w.pkl")


def test_offline_the_copy_is_used(server, capsys):
    source = server.url + "/w.pkl"
    path = resolve_source(source)
    server.status["/w.pkl"] = 503
    assert resolve_source(source) == path
    assert "the copy is used" in capsys.readouterr().err
    assert "cannot be reached" in refused("http://127.0.0.1:1/w.pkl")


def test_user_name_and_password_go_to_their_host_only(server, own_cache):
    source = server.url.replace("//", "//me:s3cret@") + "/w.pkl?signature=s3cret"
    server.token = "Basic bWU6czNjcmV0"
    path = resolve_source(source)
    server.files.clear()
    assert "s3cret" not in refused(source + "2")
    written = [p.read_text() for p in own_cache.rglob("*.json")]
    assert path.is_file() and "s3cret" not in str(path) and "s3cret" not in str(written)


def test_many_at_once_fetch_one_file(server):
    results: list = []
    server.cuts = [500_000]
    threads = [
        threading.Thread(target=lambda: results.append(resolve_source(server.url + "/w.pkl")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1 and len(results) == 6
    assert results[0].read_bytes() == DATA and server.sent == len(DATA)


def test_no_space_left(server, monkeypatch):
    class Full:
        free = 1000

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Full)
    assert "no space left" in refused(server.url + "/w.pkl")
    monkeypatch.undo()
    with pytest.raises(UserError, match="no space left"), cache.failures_named("w"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "file"))
    assert "set SID_RAY_CACHE" in refused(server.url + "/w.pkl")


# hf


HUB = "/me/net/resolve/main/a/w.pkl"


def test_hub_file(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.files = {HUB: DATA, "/me/net/resolve/v%2F1/w.pkl": b"old"}
    server.token = "Bearer hf_secret"
    assert resolve_source("hf://me/net/a/w.pkl").read_bytes() == DATA
    assert resolve_source("hf://me/net/w.pkl@v/1").read_bytes() == b"old"
    server.token = "Bearer other"
    server.files["/me/net/resolve/main/x.pkl"] = b""
    line = refused("hf://me/net/x.pkl")
    assert "no access" in line and "HF_TOKEN" in line and "hf_secret" not in line
    assert "expected hf://owner/repo" in refused("hf://me")


def test_the_token_stays_with_its_host(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving() as storage:
        storage.files = {"/blob": DATA}
        server.redirects = {HUB: storage.url + "/blob"}
        assert resolve_source("hf://me/net/a/w.pkl").read_bytes() == DATA
        assert "Authorization" in server.requests[0][1]
        assert "Authorization" not in storage.requests[0][1]


def test_redirects_leave_https_or_http_for_nothing_else(server):
    server.redirects = {"/w.pkl": "ftp://127.0.0.1/w.pkl"}
    assert "leads from http to 'ftp'" in refused(server.url + "/w.pkl")


def test_hub_offline(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.files = {HUB: DATA}
    path = resolve_source("hf://me/net/a/w.pkl")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(server.requests)
    assert resolve_source("hf://me/net/a/w.pkl") == path
    assert "HF_HUB_OFFLINE" in refused("hf://me/net/b.pkl")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    repository = tmp_path / "hf" / "hub" / "models--me--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "b.pkl").write_bytes(DATA)
    assert resolve_source(f"hf://me/net/b.pkl#sha256={SHA256}").read_bytes() == DATA
    assert len(server.requests) == asked


REPOSITORY = [
    "README.md",
    "model_index.json",
    "v1-5-pruned.safetensors",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/../../evil.json",
    "/unet/evil.json",
    "safety_checker/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
]
NEEDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


@pytest.mark.parametrize("folder", ["", "sub/"])
def test_hub_repository_as_a_folder(folder, server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    listing = [{"type": "file", "path": folder + name} for name in REPOSITORY]
    listing.append({"type": "directory", "path": folder + "unet"})
    tail = ("/" + folder).rstrip("/")
    server.files = {f"/me/net/resolve/main/{folder}{name}": b"{}" for name in REPOSITORY}
    server.files[f"/api/models/me/net/tree/main{tail}"] = json.dumps(listing).encode()
    source = f"hf://me/net{tail}"
    path = resolve_source(source)
    known = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert {n for n in known if not n.endswith((".lock", ".json.json", "l.bin.json"))} >= set(
        NEEDED
    )
    fetched = [p for p, _ in server.requests if "/resolve/" in p]
    assert sorted(fetched) == [f"/me/net/resolve/main/{folder}{name}" for name in NEEDED]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_source(source) == path
    monkeypatch.delenv("HF_HUB_OFFLINE")
    server.files[f"/api/models/me/net/tree/main{tail}"] = b"<html>"
    assert "HF_ENDPOINT" in refused(source)


# s3


def test_s3_object_is_fetched_once(s3):
    s3.objects["bucket/w.pkl"] = DATA
    assert resolve_source("s3://bucket/w.pkl").read_bytes() == DATA
    reads = len(s3.reads)
    assert resolve_source("s3://bucket/w.pkl").read_bytes() == DATA
    assert len(s3.reads) == reads and s3.reads[0] == (0, 1 << 20)


def test_s3_download_that_breaks_off(s3):
    s3.objects["bucket/w.pkl"] = DATA
    whole, broken = s3.cat_file, [2]

    def breaking(path, start, end):
        broken[0] -= 1
        if broken[0] == 0:
            raise ConnectionError("reset by peer")
        return whole(path, start, end)

    s3.cat_file = breaking
    assert resolve_source(f"s3://bucket/w.pkl#sha256={SHA256}").read_bytes() == DATA
    assert [start for start, _ in s3.reads] == sorted({start for start, _ in s3.reads})


def test_s3_prefix_with_a_network(s3, tmp_path):
    net = writer.edm_network()
    save_model(tmp_path / "net", net.state_dict(), ModelDescription("edm", writer.TINY))
    for file in (tmp_path / "net").iterdir():
        s3.objects[f"bucket/nets/a/{file.name}"] = file.read_bytes()
    s3.objects["bucket/nets/a/../../evil"] = b""
    s3.objects["bucket/nets/a/notes.txt"] = b""
    model, description = networks.load("s3://bucket/nets/a/")
    assert description.family == "edm" and not model.training
    folder = resolve_source("s3://bucket/nets/a")
    assert {p.name for p in folder.glob("model.*")} >= {"model.json", "model.safetensors"}
    assert not (folder / "notes.txt").exists()
    assert "a folder with model.json" in refused("s3://bucket/nets")
    s3.failures = [ConnectionError("down")]
    assert resolve_source("s3://bucket/nets/a") == folder


@pytest.mark.parametrize(
    "failure,line",
    [
        (PermissionError("x"), "no access"),
        (NoCredentialsError("x"), "no AWS credentials"),
        (ConnectionError("x"), "cannot be reached"),
        (FileNotFoundError("x"), "neither a file nor a folder"),
    ],
)
def test_s3_failures_in_one_line(s3, failure, line):
    s3.failures = [failure] * 20
    assert line in refused("s3://bucket/w.pkl")


def test_a_network_from_a_server(server):
    data, _ = writer.sid_snapshot()
    server.files["/sid.pkl"] = data
    digest = hashlib.sha256(data).hexdigest()
    model, description = networks.load(f"{server.url}/sid.pkl#sha256={digest}")
    assert description.family == "edm" and not model.training
