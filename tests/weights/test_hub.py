"""hf:// sources: the real huggingface_hub against a hub on loopback, each time in a new process.

The library reads HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE when it is imported.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sid_ray.weights.address import HubFile, commit_of
from sid_ray.weights.hub import what_failed
from sid_ray.weights.networks import describe
from sid_ray.weights.sources import ASSETS
from tests.weights.hub import LARGE, HubServer
from tests.weights.server import serving

DATA = bytes(range(256)) * 8_000
SHA256 = hashlib.sha256(DATA).hexdigest()
ASK = """
import json, sys
from sid_ray.errors import UserError
from sid_ray.weights.sources import resolve_component, resolve_source
for source in sys.argv[1:]:
    try:
        name, _, parts = source.partition(" ")
        found = resolve_component(name, *parts.split()) if parts else resolve_source(name)
        print(json.dumps([str(found), ""]))
    except UserError as error:
        print(json.dumps(["", str(error)]))
"""


@dataclass
class Person:
    """Somebody with a home folder of the hub's library."""

    home: Path
    environment: dict[str, str]
    said: str = field(default="")

    def ask(self, *sources: str, **environment: str) -> list[tuple[str, str]]:
        """(path, error) of each source, one of them empty, from one new process."""
        changed = os.environ | self.environment | environment
        done = subprocess.run(
            [sys.executable, "-c", ASK, *sources],
            env=changed, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        self.said = done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == len(sources), done.stderr
        return [(path, error) for path, error in answers]

    def found(self, source: str, **environment: str) -> Path:
        ((path, error),) = self.ask(source, **environment)
        assert path, error
        return Path(path)

    def refused(self, source: str, **environment: str) -> str:
        ((path, error),) = self.ask(source, **environment)
        assert not path
        assert "\n" not in error
        return error


@pytest.fixture
def hub():
    with serving(HubServer) as running:
        yield running


@pytest.fixture
def person(hub, tmp_path) -> Person:
    home = tmp_path / "hf"
    names = ("HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE")
    environment = dict.fromkeys(names, "") | {
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "SID_RAY_CACHE": str(tmp_path / "cache"),
        "no_proxy": "*",
    }
    return Person(home, environment)


def test_a_file_is_fetched_once_and_its_commit_is_known(hub, person):
    commit = hub.publish("me/net", {"a/w.pkl": DATA, "b.pkl": b"b"})
    path = person.found(f"hf://me/net/a/w.pkl#sha256={SHA256}")
    assert path.read_bytes() == DATA
    assert path == person.home / f"hub/models--me--net/snapshots/{commit}/a/w.pkl"
    assert commit_of(path) == commit
    sent = hub.sent
    hub.requests.clear()
    assert person.found("hf://me/net/a/w.pkl") == path
    assert hub.asked("/resolve/") == []
    assert hub.sent - sent < 1000  # what commit the branch is now
    assert person.found(f"hf://me/net/a/w.pkl@{commit}") == path
    assert f"{hub.asked('/revision/')}".count("GET") == 1, "a commit needs no question"


def test_a_file_that_another_program_has_fetched_is_found(hub, person):
    commit = hub.publish("me/net", {"w.pkl": DATA})
    code = "import huggingface_hub as h; print(h.hf_hub_download('me/net', 'w.pkl'))"
    environment = os.environ | person.environment
    theirs = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    hub.requests.clear()
    path = person.found("hf://me/net/w.pkl")
    assert str(path) == theirs.stdout.strip()
    assert commit_of(path) == commit
    assert hub.asked("/resolve/") == []
    assert person.found("hf://me/net/w.pkl", HF_HUB_OFFLINE="1") == path


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, person):
    old = hub.publish("me/net", {"w.pkl": b"old"}, "v/1")
    new = hub.publish("me/net", {"w.pkl": b"new"})
    sources = ["hf://me/net/w.pkl", "hf://me/net/w.pkl@v/1", f"hf://me/net/w.pkl@{old}"]
    paths = [Path(path) for path, _ in person.ask(*sources)]
    assert [path.read_bytes() for path in paths] == [b"new", b"old", b"old"]
    assert [commit_of(path) for path in paths] == [new, old, old]
    newer = hub.publish("me/net", {"w.pkl": b"newer"})
    path = person.found("hf://me/net/w.pkl")
    assert (path.read_bytes(), commit_of(path)) == (b"newer", newer)


def test_a_token_opens_what_is_private_and_stays_with_its_host(hub, person):
    hub.token = "Bearer hf_secret"
    hub.private, hub.gated = {"me/private"}, {"me/gated"}
    for repo in ("me/private", "me/gated"):
        hub.publish(repo, {"w.pkl": DATA})
    private, gated = "hf://me/private/w.pkl", "hf://me/gated/w.pkl"
    assert "me/private was not found" in person.refused(private, HF_TOKEN="hf_other")
    line = person.refused(gated, HF_TOKEN="hf_other")
    assert "accept the terms on" in line and "HF_TOKEN" in line and "hf_other" not in line
    with serving() as other:
        hub.elsewhere = other
        assert len(DATA) > LARGE
        assert person.found(gated, HF_TOKEN="hf_secret").read_bytes() == DATA
        assert other.sent == len(DATA)
        assert not any("Authorization" in headers for _, headers in other.requests)
    hub.elsewhere = None
    (person.home / "token").write_text("hf_secret\n")  # what `hf auth login` leaves
    assert person.found(private).read_bytes() == DATA


def test_what_is_not_there_is_named(hub, person):
    hub.publish("me/net", {"w.pkl": DATA, "notes.txt": b""})
    sources = ["hf://me/none/w.pkl", "hf://me/net/x.pkl", "hf://me/net/w.pkl@v2", "hf://me/net/a"]
    sources += ["hf://me", "hf://me/a--b/w.pkl", "hf://me/net#sha256=" + SHA256]
    answers = [error for _, error in person.ask(*sources)]
    expected = [
        "repository me/none was not found",
        "me/net has no x.pkl at main",
        "me/net has no revision v2",
        "neither a file nor a folder with model.json",
        "expected hf://owner/repo",
        "no repository has that name",
        "a checksum needs one",
    ]
    for found, part in zip(answers, expected, strict=True):
        assert part in found
        assert "\n" not in found


def test_another_file_than_its_checksum_says_is_refused(hub, person):
    hub.publish("me/net", {"w.pkl": DATA})
    line = person.refused(f"hf://me/net/w.pkl#sha256={'0' * 64}")
    assert SHA256 in line and "0" * 64 in line


def test_without_the_hub_what_is_here_is_used(hub, person):
    hub.publish("me/net", {"w.pkl": DATA, "x.pkl": b""})
    path = person.found("hf://me/net/w.pkl")
    nowhere = "http://127.0.0.1:9"
    assert person.found("hf://me/net/w.pkl", HF_ENDPOINT=nowhere) == path
    assert "Could not reach the Hub" in person.said
    hub.status["/api/models/me/net/revision/main"] = 503
    assert person.found("hf://me/net/w.pkl") == path
    offline = {"HF_HUB_OFFLINE": "1"}
    hub.requests.clear()
    assert person.found("hf://me/net/w.pkl", **offline) == path
    line = person.refused("hf://me/net/x.pkl", **offline)
    assert "HF_HUB_OFFLINE is set; unset it once" in line and str(person.home) in line
    assert hub.requests == []


def test_a_server_that_is_no_hub_or_none_is_named(hub, person):
    assert "cannot be reached" in person.refused("hf://me/net", HF_ENDPOINT="http://127.0.0.1:9")
    with serving() as other:
        other.files["/api/models/me/net/revision/main"] = b"<html>"
        assert "check HF_ENDPOINT" in person.refused("hf://me/net", HF_ENDPOINT=other.url)
    hub.publish("me/net", {"w.pkl": DATA})
    hub.status["/api/models/me/net/revision/main"] = 500
    assert "cannot be reached (HTTP 500)" in person.refused("hf://me/net/w.pkl")


@pytest.mark.parametrize("what", ["/revision/", pytest.param("/tree/", marks=pytest.mark.slow)])
def test_a_hub_that_does_not_answer_is_not_waited_for_for_ever(what, hub, person):
    hub.publish("me/net", {"model.json": b"{}", "model.safetensors": DATA})
    hub.silent = what
    began = time.monotonic()
    times = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    assert "cannot be reached" in person.refused("hf://me/net", **times)
    assert time.monotonic() - began < 100


def test_a_cache_that_cannot_be_written_is_named(hub, person):
    hub.publish("me/net", {"w.pkl": DATA})
    person.home.write_text("a file")
    assert "set HF_HOME to a folder that can be written" in person.refused("hf://me/net/w.pkl")


def test_a_broken_connection_is_resumed(hub, person):
    """After the last whole piece of 10 MiB, in which the library writes."""
    data = os.urandom(12 << 20)
    hub.publish("me/net", {"w.pkl": data})
    hub.cuts = [11 << 20]
    assert person.found("hf://me/net/w.pkl").read_bytes() == data
    assert len(data) <= hub.sent < len(data) + (2 << 20)


def test_processes_of_a_node_fetch_one_file_once(hub, person):
    hub.publish("me/net", {"w.pkl": DATA})
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(person.found("hf://me/net/w.pkl")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1
    assert hub.sent < len(DATA) + 10_000


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
    "safety_checker/model.safetensors",
    "text_encoder/config.json",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
]
NEEDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


@pytest.mark.parametrize("folder", ["", "sub[1]/"])
def test_a_folder_is_the_files_that_a_network_needs(folder, hub, person):
    files = {folder + name: name.encode() for name in REPOSITORY}
    commit = hub.publish("me/net", files | {"other/unet/config.json": b"{}"})
    source = f"hf://me/net/{folder}".rstrip("/")
    path = person.found(source)
    snapshot = person.home / "hub/models--me--net/snapshots" / commit
    assert path == snapshot / folder
    here = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    assert here == NEEDED
    assert not list(person.home.rglob("evil.json"))
    hub.requests.clear()
    assert person.found(source) == path
    assert hub.asked("/tree/") == [], "the list of a commit's files is asked once"
    assert person.found(source, HF_HUB_OFFLINE="1") == path
    shutil.rmtree(snapshot.parents[1] / "trees")  # older versions of the library keep no list
    assert person.found(source, HF_HUB_OFFLINE="1") == path


def test_only_the_parts_that_are_needed_are_fetched(hub, person):
    hub.publish("me/net", {name: name.encode() for name in REPOSITORY})
    text = "hf://me/net text_encoder tokenizer"
    path = person.found(text)
    here = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    assert here == [n for n in NEEDED if n.startswith(("model_index", "text_", "tokenizer"))]
    offline = {"HF_HUB_OFFLINE": "1"}
    assert person.found(text, **offline) == path
    line = person.refused("hf://me/net", **offline)
    assert "is not in the cache" in line, "the U-Net is missing, and that is known"
    before = hub.sent
    assert person.found("hf://me/net") == path
    assert hub.sent - before < 1000


def test_a_network_of_a_metric_is_fetched_with_its_tokenizer_and_once(hub, person):
    """A repository that is a Transformers folder, as PickScore's: weights stand there twice."""
    needed = ("config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json")
    others = ("README.md", "pytorch_model.bin", "flax_model.msgpack", "onnx/model.onnx")
    hub.publish("me/clip", {name: name.encode() for name in needed + others})
    path = person.found("hf://me/clip network")
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*.*")) == sorted(needed)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left for hf://me/net"),
        (PermissionError(errno.EACCES, "Permission denied"), "set HF_HOME to a folder that can"),
        (RuntimeError("chunk\nserver is gone"), "cannot be reached (RuntimeError: chunk"),
    ],
)
def test_failures_of_the_machine_are_told(error, part):
    assert part in what_failed(HubFile("me/net", "", "main"), "hf://me/net", error)


def test_a_commit_is_read_off_paths_of_the_hub_only():
    assert commit_of(Path("/a/models--x--y/snapshots/abc/w.pkl")) == "abc"
    assert commit_of(Path("/a/snapshots/abc/w.pkl")) == ""
    assert commit_of(Path("/a/models--x--y/snapshots")) == ""


def test_the_commit_of_a_network_is_noted(hub, person):
    teacher = ASSETS / "digits-teacher"
    commit = hub.publish("me/net", {path.name: path.read_bytes() for path in teacher.iterdir()})
    described = describe(person.found("hf://me/net"))
    assert described.network == describe(teacher).network
    assert described.notes == {**describe(teacher).notes, "commit": commit}
