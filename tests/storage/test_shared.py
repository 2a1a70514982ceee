"""What one host writes another must read; two folders stand for two hosts' disks."""

import errno

import numpy as np
import pytest

from sid_ray.storage import shared
from sid_ray.storage.errors import UnreachableStoreError
from sid_ray.storage.shared import UNKNOWN, Token, answer, content_digest, not_shared, remove_tokens
from sid_ray.storage.store import Store


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(Token.seen, "__defaults__", (0.0,))


def elsewhere(token, folder):
    """The same token as a host sees it whose disk is another folder."""
    return Token(Store.at(folder), token.name, token.text)


def test_a_token_is_seen_in_its_own_folder_alone(tmp_path):
    token = Token.new(Store.at(tmp_path / "a"))
    assert token.write() == "" and token.seen()
    other = elsewhere(token, tmp_path / "b")
    assert not other.seen()
    Token.new(other.store).write()  # the same path, of another run
    assert not other.seen()
    token.remove()
    assert not token.seen()
    token.write()  # of a process that was killed
    remove_tokens(token.store)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_token_may_be_seen_late(tmp_path, monkeypatch):
    token, tries = Token.new(Store.at(tmp_path)), []
    monkeypatch.setattr(shared.time, "sleep", lambda seconds: tries.append(token.write()))
    assert token.seen(patience_s=60)
    assert tries == [""]


def test_storage_that_is_away_is_not_called_unshared(tmp_path, monkeypatch):
    def away(self, *_):
        raise UnreachableStoreError("no answer")

    monkeypatch.setattr(Store, "read_text", away)
    monkeypatch.setattr(Store, "write", away)
    token = Token.new(Store.at(tmp_path))
    assert token.write() == UNKNOWN and token.seen()
    assert answer(token, "node", "host-a") == ("", None)


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSPC, UNKNOWN), (errno.EROFS, "Read-only"), (errno.EACCES, "Permission")],
)
def test_what_keeps_a_host_from_writing(tmp_path, monkeypatch, number, why):
    def fail(self, *_):
        raise OSError(number, {errno.EROFS: "Read-only"}.get(number, "Permission"))

    monkeypatch.setattr(Store, "write", fail)
    assert Token.new(Store.at(tmp_path)).write() == why


def test_a_node_answers_with_a_token_of_its_own(tmp_path):
    asked = Token.new(Store.at(tmp_path / "a"))
    asked.write()
    wrong, theirs = answer(asked, "node", "host-a")
    assert wrong == "" and theirs.seen()
    wrong, theirs = answer(elsewhere(asked, tmp_path / "b"), "node", "host-a")
    assert wrong == "sees nothing of host-a" and theirs is None
    assert not (tmp_path / "b").exists()  # nothing is left behind


def test_the_line_names_hosts_and_what_to_use():
    many = [f"host-{i} sees nothing" for i in range(9)] * 2
    text = str(not_shared("/tmp/runs", many, "--output.folder"))
    assert text.startswith("/tmp/runs is not one folder for all hosts: host-0 sees nothing, ")
    assert "host-3" in text and "host-4" not in text and "and 5 more" in text
    assert "set --output.folder to s3://BUCKET/PREFIX or to a path that all hosts share" in text


def test_contents_are_compared_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "READ_WHOLE", 100)
    values = np.arange(1001, dtype=np.float32)  # 4,004 bytes: no whole number of words
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.pt").write_bytes(values.tobytes())
        (tmp_path / name / f"README-{name}.md").write_text(name)
    suffixes = (".pt", ".json")
    same = content_digest(tmp_path / "a", suffixes)
    assert same == content_digest(tmp_path / "b", suffixes)
    for place in (0, 500, 1000):
        changed = values.copy()
        changed[place] += 1
        (tmp_path / "b" / "weights.pt").write_bytes(changed.tobytes())
        assert content_digest(tmp_path / "b", suffixes) != same, place
    (tmp_path / "a" / "model.json").write_text("{}")
    assert content_digest(tmp_path / "a", suffixes) != same
    file = tmp_path / "a" / "weights.pt"
    assert content_digest(file) != content_digest(tmp_path / "b" / "weights.pt")


def test_machines_of_the_same_name_are_told_apart(tmp_path, monkeypatch):
    found = set()
    for boot in ("1", "2", "2"):
        (tmp_path / "boot_id").write_text(boot)
        monkeypatch.setattr(shared, "BOOT_ID", tmp_path / "boot_id")
        found.add(shared.this_machine())
    assert len(found) == 2
    monkeypatch.setattr(shared, "BOOT_ID", tmp_path / "none")
    assert shared.this_machine()
