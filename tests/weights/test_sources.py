"""Sources on disks and behind https: fetched once, resumed, checked, and no credential is told."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import sys
import threading
import time

import pytest

from sid_ray.errors import UserError
from sid_ray.storage.durable import locked
from sid_ray.storage.errors import UnreachableStoreError
from sid_ray.weights import cache, networks, remotes
from sid_ray.weights.address import parse_source, source_label
from sid_ray.weights.sources import builtin_models, resolve_source
from tests.support import weights_writer as writer
from tests.weights.server import serving

DATA = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cache, "PAUSE_S", 0.001)
    monkeypatch.setattr(remotes, "CHUNK", 500_000)
    return tmp_path / "cache"


@pytest.fixture
def server():
    with serving() as running:
        running.files["/w.pkl"] = DATA
        yield running


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
    assert server.sent == sent and server.requests[-1][0] == "HEAD /w.pkl"
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


def parts_asked(server) -> list[int]:
    """The first byte of each part that was asked for, but of the last byte alone."""
    ranges = [headers.get("Range", "") for name, headers in server.requests if "GET" in name]
    spans = [[int(n) for n in r.removeprefix("bytes=").split("-")] for r in ranges if r]
    return [begin for begin, end in spans if end > begin]


def test_broken_connections_are_resumed(server):
    server.cuts = [500_000, 0, 500_000, 5]  # bytes until each connection breaks
    assert resolve_source(server.url + "/w.pkl").read_bytes() == DATA
    assert parts_asked(server)[:5] == [0, 500_000, 500_000, 1_000_000, 1_000_000]
    assert server.sent < len(DATA) + 10_000


def test_a_later_call_goes_on(server, monkeypatch):
    monkeypatch.setattr(cache, "ATTEMPTS", 1)
    server.cuts = [500_000, 500_000, 17]
    line = refused(server.url + "/w.pkl")
    assert "cannot be reached" in line and "goes on from there" in line
    assert resolve_source(f"{server.url}/w.pkl#sha256={SHA256}").read_bytes() == DATA
    assert server.sent < len(DATA) + 10_000


@pytest.mark.parametrize("missing", ["ranges", "etags"])
def test_servers_that_cannot_resume_start_anew(missing, server):
    setattr(server, missing, False)
    server.cuts = [1_000_000]
    assert resolve_source(server.url + "/w.pkl").read_bytes() == DATA


def test_a_file_that_changes_while_it_is_fetched(server, monkeypatch):
    monkeypatch.setattr(cache, "ATTEMPTS", 1)
    server.cuts = [500_000, 0]
    refused(server.url + "/w.pkl")
    server.files["/w.pkl"] = DATA[::-1]
    assert resolve_source(server.url + "/w.pkl").read_bytes() == DATA[::-1]


def test_failures_in_one_line(server):
    assert "not found" in refused(server.url + "/other.pkl")
    server.status = {"/denied": 403, "/broken": 500, "/odd": 418}
    assert "no access" in refused(server.url + "/denied")
    assert "HTTP 500" in refused(server.url + "/broken")
    assert "HTTP 418" in refused(server.url + "/odd")
    assert "the address is not one" in refused("http://127.0.0.1:nothing/w.pkl")
    assert "add #sha256" in refused("http://example.org/w.pkl")


def test_offline_the_copy_is_used(server, capsys):
    source = server.url + "/w.pkl"
    path = resolve_source(source)
    server.status["/w.pkl"] = 503
    assert resolve_source(source) == path
    assert "the copy is used" in capsys.readouterr().err
    assert "cannot be reached" in refused("http://127.0.0.1:9/w.pkl")


def test_user_name_and_password_go_to_their_host_only(server, own_cache):
    source = server.url.replace("//", "//me:s3cret@") + "/w.pkl?signature=s3cret"
    server.token = "Basic bWU6czNjcmV0"
    path = resolve_source(source)
    server.files.clear()
    assert "s3cret" not in refused(source + "2")
    written = [p.read_text() for p in own_cache.rglob("*.json")]
    assert path.is_file() and "s3cret" not in str(path) and "s3cret" not in str(written)


def test_a_password_stays_with_its_host(server):
    with serving() as other:
        other.files["/blob"] = DATA
        server.redirects = {"/w.pkl": other.url + "/blob"}
        source = server.url.replace("//", "//me:s3cret@") + "/w.pkl"
        assert resolve_source(source).read_bytes() == DATA
        assert "Authorization" in server.requests[0][1]
        assert not any("Authorization" in headers for _, headers in other.requests)


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
    assert results[0].read_bytes() == DATA and server.sent < len(DATA) + 10_000


def broken(data: bytes, lengths: list[int], asked: list[int]) -> remotes.Remote:
    """A file whose connections break after so many bytes; ``asked`` keeps where each begins."""

    def chunks(start: int):
        asked.append(start)
        if lengths:
            yield data[start : start + lengths.pop(0)]
            raise UnreachableStoreError("it broke off")
        yield data[start:]

    return remotes.Remote(len(data), "v", lambda: True, chunks)


def test_any_remote_file_goes_on_where_it_broke(tmp_path):
    remote = broken(DATA, [100_000, 0, 2_000_000, 5], asked := [])
    source = parse_source(f"s3://bucket/w#sha256={SHA256}")
    path = cache.fetch_file(tmp_path / "w", lambda: remote, source, "w")
    assert path.read_bytes() == DATA
    assert asked == [0, 100_000, 100_000, 2_100_000, 2_100_005]
    assert not list(tmp_path.glob("*.part"))


def test_whoever_waits_for_another_process_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "NOTE_S", 0.01)
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    path = tmp_path / "w"
    work = (path, lambda: broken(DATA, [], []), parse_source("s3://bucket/w"), "w")
    waiting = threading.Thread(target=cache.fetch_file, args=work)
    with locked(path):
        waiting.start()
        deadline = time.monotonic() + 60
        while not said.getvalue().endswith("\n") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not path.exists()
    waiting.join()
    assert said.getvalue() == "waiting for the process that fetches w\n"
    assert path.read_bytes() == DATA


def test_no_more_is_written_than_a_file_claims(tmp_path):
    sent: list[int] = []

    def endless(start: int):
        while len(sent) < 1000:
            sent.append(1)
            yield bytes(1000)

    remote = remotes.Remote(2500, None, lambda: False, endless)
    with pytest.raises(UserError, match="3000 of 2500 bytes"):
        cache.fetch_file(tmp_path / "w", lambda: remote, parse_source("s3://b/w"), "w")
    assert len(sent) == 3 * cache.ATTEMPTS


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


def test_redirects_leave_https_or_http_for_nothing_else(server):
    server.redirects = {"/w.pkl": "ftp://127.0.0.1/w.pkl"}
    assert "leads from http to 'ftp'" in refused(server.url + "/w.pkl")


def test_a_network_from_a_server(server):
    data, _ = writer.sid_snapshot()
    server.files["/sid.pkl"] = data
    digest = hashlib.sha256(data).hexdigest()
    model, description = networks.load(f"{server.url}/sid.pkl#sha256={digest}")
    assert description.family == "edm" and not model.training
