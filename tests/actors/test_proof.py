"""Ranks prove that their hosts share the run; a thread and a folder stand for each host."""

import threading
from types import SimpleNamespace

import pytest

from sid_ray.actors import proof
from sid_ray.actors.build import WorkerSettings
from sid_ray.actors.proof import Content, Seat, Sight, check, contents, prove
from sid_ray.config.distill_config import replace
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.recipes.registry import recipe
from sid_ray.storage.shared import UNKNOWN, NotSharedError, Token
from sid_ray.storage.store import Store
from tests.support.data_sources import edm_members, pixels, write_zip

DIGITS, RUN = recipe("digits-sid"), "/runs/x"


class Hosts:
    """Ranks in threads, each with the node of its place; the driver is on node "a"."""

    def __init__(self, monkeypatch, nodes):
        self.nodes, self.local = nodes, threading.local()
        self.barrier, self.values = threading.Barrier(len(nodes)), [None] * len(nodes)
        monkeypatch.setattr(Token.seen, "__defaults__", (0.0,))
        monkeypatch.setattr(proof, "gathered", self.gathered)
        monkeypatch.setattr(proof, "world", lambda: (self.local.rank, len(nodes)))
        monkeypatch.setattr(proof, "this_host", self.here)
        monkeypatch.setattr(proof, "on_this_node", lambda config, settings: settings)
        on_disk = lambda store, name="": f"{self.local.disk}/{name}"  # noqa: E731
        monkeypatch.setattr(Store, "path", on_disk)
        monkeypatch.setattr(proof.ray, "get", lambda value: value)
        self.proven = set()
        answers = {"proven": lambda: set(self.proven), "prove": self.proven.update}
        remote = {name: SimpleNamespace(remote=does) for name, does in answers.items()}
        self.tracker = SimpleNamespace(**remote)

    def here(self):
        node = self.nodes[self.local.rank]
        return node, f"host-{node}"

    def gathered(self, value, group=None):
        self.values[self.local.rank] = value
        self.barrier.wait(10)
        every = list(self.values)
        self.barrier.wait(10)
        return every

    def prove(self, driver, disks):
        """What each rank raised, None for nothing. ``disks``: what is RUN for driver and ranks."""
        self.local.disk = driver
        token = Token.new(Store.at(RUN))
        token.write()
        raised = [None] * len(self.nodes)
        settings = WorkerSettings(
            config="", run_folder=RUN, teacher_folder="", initial_generator="", local_folder="",
            run_key="", own_scaling=True, tracker=self.tracker, evaluator=None,
            seat=Seat("a", "host-a", token),
        )  # fmt: skip

        def rank(number):
            self.local.rank, self.local.disk = number, disks[number]
            try:
                prove(DIGITS, settings)
            except NotSharedError as error:
                raised[number] = str(error)

        threads = [threading.Thread(target=rank, args=(n,)) for n in range(len(self.nodes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


def test_hosts_that_share_the_run_go_on(tmp_path, monkeypatch):
    hosts = Hosts(monkeypatch, ["b", "b", "c"])
    assert hosts.prove(tmp_path, [tmp_path] * 3) == [None] * 3
    assert [path.name[:13] for path in tmp_path.iterdir()] == [".host-driver-"]
    assert hosts.proven == {"b", "c"}


def test_a_host_proves_it_once(tmp_path, monkeypatch):
    hosts = Hosts(monkeypatch, ["b", "c"])
    hosts.proven = {"b"}
    away = [tmp_path / "away"] * 2
    assert "host-c sees nothing" in hosts.prove(tmp_path / "a", away)[0]  # c is new
    hosts.proven = {"b", "c"}
    assert hosts.prove(tmp_path / "a", [tmp_path / "gone"] * 2) == [None] * 2
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("nodes", "disks", "said"),
    [
        (
            ["b", "c"],
            ["b", "c"],
            ["host-b sees nothing of host-a", "host-c sees nothing of host-a"],
        ),
        (
            ["a", "c"],
            ["a", "c"],
            ["host-c sees nothing of host-a", "host-a sees nothing of host-c"],
        ),
        (["b"], ["b"], ["host-b sees nothing of host-a"]),
        (["b", "b", "c"], ["a", "a", "c"], ["host-c sees nothing of host-a and host-b"]),
    ],
)
def test_hosts_with_disks_of_their_own_are_named_to_every_rank(
    tmp_path, monkeypatch, nodes, disks, said
):
    raised = Hosts(monkeypatch, nodes).prove(tmp_path / "a", [tmp_path / d for d in disks])
    assert len(set(raised)) == 1 and "\n" not in raised[0]
    for text in [*said, "set --output.folder to s3://BUCKET/PREFIX or to a path that all"]:
        assert text in raised[0]


def test_ranks_on_the_drivers_own_host_are_asked_nothing(tmp_path, monkeypatch):
    assert Hosts(monkeypatch, ["a", "a"]).prove(tmp_path / "a", [tmp_path / "b"] * 2) == [None] * 2
    assert not (tmp_path / "b").exists()


def test_a_host_that_cannot_write_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Token, "write", lambda self: "Read-only file system")
    with pytest.raises(
        NotSharedError, match=r"host-b cannot write there \(Read-only file system\)"
    ):
        check("/runs/x", [Seat("b", "host-b", None, "Read-only file system")], [], {})
    check("/runs/x", [Seat("b", "host-b", None, UNKNOWN)], [], {})  # its storage is away


def test_other_contents_are_named_with_their_hosts():
    expected = {"data.source /data": Content("1")}
    seen = [Content("1"), Content("2"), Content("", "it is missing")]
    sights = [Sight(f"host-{n}", (), {"data.source /data": s}) for n, s in enumerate(seen)]
    check("/runs/x", [], sights[:1], expected)
    with pytest.raises(NotSharedError) as error:
        check("/runs/x", [], sights, expected)
    assert str(error.value).startswith(
        "data.source /data is not the same on all hosts: host-1 has other contents, host-2 has "
        "none (it is missing): bring"
    )


@pytest.fixture
def prepared(tmp_path):
    """A config of a prepared set, and the set's folder."""
    source = write_zip(tmp_path / "a.zip", edm_members(pixels(8), [0] * 8))
    prepare_data(PrepareOptions(str(source), str(tmp_path / "set"), workers=0))
    config = replace(DIGITS, data__name="prepared", data__source=str(tmp_path / "set"))
    return config, tmp_path / "set"


def test_data_that_is_cut_or_missing_on_a_host(prepared):
    config, folder = prepared
    (what,) = contents(config, "")
    whole = contents(config, "")[what]
    assert what == f"data.source {folder}" and whole.digest and not whole.trouble
    assert contents(config, "")[what] == whole
    part = next(folder.glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    assert contents(config, "")[what] == Content("", f"{part.name} is missing or cut")
    part.rename(folder.parent / "elsewhere")
    (folder / "manifest.json").unlink()
    assert not contents(config, "")[what].digest


def test_networks_on_disks_are_compared_and_others_are_not(tmp_path):
    file = tmp_path / "teacher.pkl"
    file.write_bytes(b"weights")
    local = replace(DIGITS, teacher__source=str(file))
    found = contents(local, str(file))
    assert list(found) == [f"teacher.source {file}"]
    file.write_bytes(b"others!")
    assert contents(local, str(file)) != found
    file.unlink()
    assert contents(local, str(file))[f"teacher.source {file}"].trouble == "it is missing"
    for source in ("builtin:digits-edm", "https://host/teacher.pkl", "s3://bucket/teacher.pkl"):
        assert contents(replace(DIGITS, teacher__source=source), "/cache/teacher") == {}
