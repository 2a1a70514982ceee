"""Preparing over a cluster: nodes that do not see DST or SRC are named before the work."""

import pytest

from sid_ray.data import pipeline, prepare
from sid_ray.data.layout import Unit
from sid_ray.data.options import PrepareOptions
from sid_ray.data.pipeline import Builder, check_shared, check_source
from sid_ray.data.prepare import prepare_data
from sid_ray.data.samples import Samples
from sid_ray.errors import UserError
from sid_ray.storage.shared import NotSharedError, Token
from sid_ray.storage.store import Store
from tests.support.data_sources import edm_members, pixels, write_zip
from tests.support.other_host import on_host


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of nodes by their hosts' names; each is a function that does what it is asked."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    monkeypatch.setattr(Token.seen, "__defaults__", (0.0,))
    monkeypatch.setattr(pipeline, "own_node_address", lambda: "10.0.0.1")
    found = {"host-b (10.0.0.2)": lambda ask: ask()}
    monkeypatch.setattr(
        pipeline, "ask_nodes", lambda ask: {name: node(ask) for name, node in found.items()}
    )
    return found


def test_nodes_that_share_the_destination(nodes, tmp_path):
    token = check_shared(Store.at(tmp_path), str(tmp_path), "the destination")
    assert token.seen() and [path.name for path in tmp_path.iterdir()] == [token.name]


def test_a_node_with_a_disk_of_its_own_is_named(nodes, tmp_path, monkeypatch):
    own = tmp_path / "c"
    nodes["host-c (10.0.0.3)"] = lambda ask: on_host(own, monkeypatch, ask)
    with pytest.raises(NotSharedError) as error:
        check_shared(Store.at(tmp_path / "set"), "SET", "the destination")
    text = str(error.value)
    assert text.startswith("SET is not one folder for all hosts: host-c (10.0.0.3) sees nothing")
    assert "host-b" not in text and "set the destination to s3://BUCKET/PREFIX" in text
    assert list((tmp_path / "set").iterdir()) == [] and not own.exists()


def test_a_node_whose_files_are_not_seen_here_is_named(nodes, tmp_path, monkeypatch):
    """As through a mount that shows a copy: it reads what was written, and writes elsewhere."""

    def copied(ask):
        wrong, theirs = ask()
        theirs.remove()
        return wrong, theirs

    nodes["host-c (10.0.0.3)"] = copied
    with pytest.raises(NotSharedError, match=r"host-c \(10.0.0.3\) writes what .*10.0.0.1\) does"):
        check_shared(Store.at(tmp_path), "SET", "the destination")


class OneFile:
    """A reader of a folder on some host's disk."""

    def __init__(self, folder):
        self.folder = folder

    def read(self, name, place):
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            raise UserError("no such file") from None


def test_a_source_that_other_nodes_see_otherwise(nodes, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    reader = OneFile(tmp_path)
    samples = Samples("images", "SRC", 2, reader, names=["a", "b"], places=[None, None])
    units = [Unit(0, samples, (2,))]
    check_source(units)
    nodes["host-c (10.0.0.3)"] = lambda ask: ("other", "")
    nodes["host-d (10.0.0.4)"] = lambda ask: ("", "SRC: a (sample 0): no such file")
    with pytest.raises(NotSharedError) as error:
        check_source(units)
    assert "host-c (10.0.0.3) has other samples" in str(error.value)
    assert "host-d (10.0.0.4) finds none (SRC: a (sample 0): no such file)" in str(error.value)
    (tmp_path / "b").unlink()  # gone here: the work itself names the sample
    check_source(units)


def test_a_node_that_comes_later_and_does_not_share_leaves_finished_files(tmp_path, monkeypatch):
    monkeypatch.setattr(Token.seen, "__defaults__", (0.0,))
    token = Token.new(Store.at(tmp_path))

    class FakeWork:
        destination = "SET"

    assert "does not share this folder" in Builder(FakeWork, token).trouble
    token.write()
    assert Builder(FakeWork, token).trouble == "" and Builder(FakeWork).trouble == ""


@pytest.mark.parametrize("resumed", [False, True])
def test_a_refusal_removes_nothing_that_was_finished_before(tmp_path, monkeypatch, resumed):
    source = write_zip(tmp_path / "a.zip", edm_members(pixels(8), [0] * 8))
    destination = tmp_path / "set"

    def refuse(*_):
        raise NotSharedError("not shared")

    monkeypatch.setattr(prepare, "run_units", refuse)
    if resumed:
        monkeypatch.setattr(
            prepare, "finished", lambda work, units: {7: type("R", (), {"row_groups": (8,)})()}
        )
    with pytest.raises(NotSharedError):
        prepare_data(PrepareOptions(str(source), str(destination), workers=1))
    assert destination.exists() == resumed
