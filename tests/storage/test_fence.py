"""Whatever two drivers do, cut off or frozen, the checkpoints that count are those of one line."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.checkpoint.remote import RunStorage
from sid_ray.storage import lease as module
from sid_ray.storage import waiting
from sid_ray.storage.errors import MissingFileError, UnreachableStoreError
from sid_ray.storage.fence import (
    MANIFEST,
    OPEN,
    Fence,
    lease_name,
    newest_number,
    number_of,
    read_fence,
)
from sid_ray.storage.lease import Lease, LeaseLostError, made
from sid_ray.storage.store import Store
from sid_ray.storage.waiting import newest_lease

TERM_S = 9.0


@dataclass(frozen=True)
class Memory(Store):
    """A store in memory, as one host reaches it: name -> (text, when)."""

    held: dict = field(default_factory=dict)
    now: list = field(default_factory=lambda: [0.0])
    away: list = field(default_factory=list)  # holds something while it does not answer

    def _reached(self):
        if self.away:
            raise UnreachableStoreError("no answer")
        return self.held

    def look(self):
        self._reached()

    def times(self):
        return {name: when for name, (_, when) in self._reached().items() if "/" not in name}

    def folders(self):
        return sorted({name.split("/")[0] for name in self._reached() if "/" in name})

    def size(self, name):
        return len(self._reached()[name][0]) if name in self._reached() else None

    def read_text(self, name):
        if name not in self._reached():
            raise MissingFileError(name)
        return self.held[name][0]

    def write(self, name, data):
        self._reached()[name] = (data, self.now[0])

    def remove(self, name):
        self._reached().pop(name, None)

    def remove_tree(self, name):
        for file in [file for file in self._reached() if file.startswith(f"{name}/")]:
            del self.held[file]

    def write_new(self, name, text):
        if name in self._reached():
            return False
        self.write(name, text)
        return True


class Driver:
    """One host: a driver with its workers, which may be cut off from the store, or frozen."""

    def __init__(self, world, host):
        self.world, self.host = world, host
        self.store = replace(world.store, away=[])
        self.lease, self.line, self.uploads = None, (), []

    @property
    def works(self):
        """Whether it believes that it may go on."""
        try:
            self.lease.check()
        except LeaseLostError:
            return False
        return True

    def start(self):
        """As a new process, where the lease is free: goes on from the newest that counts."""
        self.lease = None
        newest = newest_lease(self.store)
        if newest is not None and not newest.is_free("", lambda values: False):
            return
        number = (newest.number if newest else 0) + 1
        values = {"host": self.host, "pid": 1, "place": self.host, "term_s": TERM_S}
        values |= {"token": f"{self.host}{number}{self.world.now[0]}"}
        if made(self.store, number, values):
            lease = Lease(self.store, number, values, self.world.now[0])
            lease.open()
            self.lease = lease
            self.storage = RunStorage(self.store, lease.fence)
            newest = self.storage.names()
            self.line = self.world.lines[newest[0]] if newest else ()

    def step(self):
        """A checkpoint is on its way; also of a driver that is frozen and has not looked."""
        self.line = (*self.line, (self.host, len(self.line)))
        name = f"checkpoint_{len(self.line):012d}_{self.lease.fence.attempt(self.host)}"
        self.world.lines[name] = self.line
        self.uploads.append(name)

    def deliver(self):
        if self.uploads:
            self.store.write(f"{self.uploads[0]}/{MANIFEST}", "{}")
            self.uploads.pop(0)

    def keep(self):
        self.storage.keep(2)

    def renew(self):
        self.lease._renew()

    def cut(self):
        self.store.away[:] = ["cut"] * (not self.store.away)

    def end(self):
        self.lease.note(ended=True)
        self.renew()
        self.lease = None


class World:
    def __init__(self):
        self.now, self.lines, self.begun_with = [1e9], {}, 0
        self.store = Memory("s3://b/run", now=self.now)
        self.drivers = [Driver(self, host) for host in "abc"]

    def patch(self, patch):
        """The world's clock and store for the code that is tested."""
        patch.setattr(module, "clock", lambda: self.now[0])
        patch.setattr(waiting, "time", SimpleNamespace(time=lambda: self.now[0]))

    def do(self, action, index, seconds):
        driver = self.drivers[index]
        self.now[0] += seconds
        needs_lease = action not in ("start", "cut", "deliver")
        if needs_lease and driver.lease is None:
            return
        with suppress(UnreachableStoreError):
            getattr(driver, action)()
        if action == "start" and driver.lease:
            self.begun_with = len(driver.line)

    def check(self):
        counted = [n for n in self.store.folders() if read_fence(self.store).accepts(n)]
        lines = sorted((self.lines[name] for name in counted), key=len)
        for shorter, longer in pairwise(lines):
            assert longer[: len(shorter)] == shorter, "two lines of checkpoints count"
        assert max(map(len, lines), default=0) >= self.begun_with, "a state is lost"
        working = [driver.host for driver in self.drivers if driver.lease and driver.works]
        assert len(working) <= 1, "two drivers believe that they may go on"


ACTIONS = ("start", "step", "step", "deliver", "deliver", "keep", "renew", "renew", "cut", "end")
STORIES = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2), st.sampled_from((0.0, 0.5, 2.0, 10.0))),
    min_size=30,
    max_size=60,
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(STORIES)
def test_no_two_lines_of_checkpoints_ever_count(story):
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        world.patch(patch)
        for told in story:
            world.do(*told)
            world.check()


def test_the_stories_are_of_the_kind_that_is_meant():
    """By hand: a frozen driver's late checkpoint, which a store without numbers would take up."""
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        world.patch(patch)
        for told in (
            ("start", 0, 0), ("step", 0, 0), ("deliver", 0, 0), ("step", 0, 0), ("step", 0, 0),
            ("cut", 0, 0), ("start", 1, 10), ("step", 1, 0), ("deliver", 1, 0),
            ("cut", 0, 0), ("deliver", 0, 0), ("deliver", 0, 0), ("keep", 0, 0),
        ):  # fmt: skip
            world.do(*told)
            world.check()
        names = world.store.folders()
        assert [(number_of(name), name[11:23].lstrip("0")) for name in names] == [
            (1, "1"), (1, "2"), (2, "2"), (1, "3"),
        ], "the frozen driver's late ones are there, and it has removed nothing"  # fmt: skip
        assert [n for n in names if read_fence(world.store).accepts(n)] == [names[0], names[2]]
        assert RunStorage(world.store, OPEN).names()[0] == names[3], "what would be taken up"
        world.do("keep", 1, 0)
        assert world.store.folders() == [names[0], names[2]], "the others are removed"
        world.do("renew", 0, 0)
        assert world.drivers[0].lease.taken_over == "process 1 on b"


def test_names_hold_the_number_and_those_without_count_as_0():
    assert number_of("checkpoint_000000000064_1f3a2b") == 0
    assert number_of("checkpoint_000000000064_000012-1f3a2b") == 12
    fence = Fence(7, frozenset({"checkpoint_000000000064_1f3a2b"}), frozenset({6}))
    assert fence.own("checkpoint_000000000064_1f3a2b") == "checkpoint_000000000064_000007-1f3a2b"
    assert fence.own("checkpoint_000000000064_000006-a") == "checkpoint_000000000064_000007-a"
    assert fence.accepts("checkpoint_000000000064_1f3a2b")
    assert not fence.accepts("checkpoint_000000000128_1f3a2b")
    assert fence.may_adopt("checkpoint_000000000128_000006-a")
    assert not fence.may_remove("checkpoint_000000000128_000008-a")
    assert OPEN.attempt("a1") == "a1"


def test_a_run_of_before_leases_had_numbers_is_gone_on_with(tmp_path):
    store = Store.at(tmp_path)
    old = store / "checkpoint_000000000064_1f3a2b"
    old.write(MANIFEST, "{}")
    assert read_fence(store) == OPEN
    with module.only_lease(store) as lease:
        assert lease.fence == Fence(1, frozenset({old.name}), frozenset({0}))
        assert read_fence(store) == lease.fence
    (store / "checkpoint_000000000128_1f3a2b").write(MANIFEST, "{}")
    assert RunStorage(store, read_fence(store)).names() == [old.name]
    assert newest_number(store) == 1 and store.size(lease_name(1))


def test_a_lease_that_left_nothing_hides_nothing_on_local_disks(tmp_path):
    """A start that was refused behind the lease, as with another config, then the right one."""
    store = Store.at(tmp_path)
    with module.only_lease(store):
        (store / "checkpoint_000000000064_000001-a").write(MANIFEST, "{}")
    for number, heirs in ((2, {1}), (3, {1, 2})):
        with module.only_lease(store) as lease:
            assert (lease.number, lease.fence.heirs) == (number, heirs)
    with module.only_lease(store):
        (store / "checkpoint_000000000128_000004-a").write(MANIFEST, "{}")
    with module.only_lease(store) as lease:
        assert lease.fence.heirs == {4}
