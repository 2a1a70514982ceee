"""Checkpoints reach storage while training goes on, and the newest whole one is found again."""

import errno
import os
import shutil
import threading
import time

import pytest
import torch

from sid_ray.checkpoint import writer as spool_module
from sid_ray.checkpoint.manifest import MANIFEST, checkpoint_name, load_files
from sid_ray.checkpoint.restore import Search
from sid_ray.checkpoint.snapshot import take_snapshot
from sid_ray.checkpoint.writer import RunStorage, Spool
from sid_ray.storage import errors
from sid_ray.storage.fence import Fence, lease_name
from tests.checkpoint.test_manifest import DESCRIPTION
from tests.support.checkpoints import newest_whole, verify
from tests.support.networks import tiny_network
from tests.training.test_step import trainee_of


class Bench:
    """One rank's spool with a trainee whose weights say which checkpoint they are of."""

    def __init__(self, folder):
        self.told = []
        self.local, self.storage = folder / "local", folder / "run"
        self.storage.mkdir(parents=True)
        self.trainee = trainee_of(tiny_network())
        self.open()

    def open(self):
        """As a new process would."""
        self.spool = Spool(self.local, self.storage, 2, self.told.append, self.told.append)

    def roles(self):
        return {"fake_score": self.trainee.fake_score, "generator": self.trainee.generator}

    def save(self, images_seen):
        with torch.no_grad():
            for parameter in self.trainee.generator.module.parameters():
                parameter.fill_(images_seen)
        self.trainee.images_seen = images_seen
        name = checkpoint_name(images_seen, "a1")
        snapshot = take_snapshot(self.trainee, self.roles(), DESCRIPTION, "{}")
        self.spool.save(snapshot, name)
        return name

    def newest(self):
        """(images seen, the number its weights are filled with) after a restart."""
        self.open()
        found = Search(self.spool).newest()
        if found is None:
            return None
        load_files(found.manifest, found.where, self.trainee, self.roles())
        value = next(self.trainee.generator.module.parameters()).flatten()[0].item()
        return self.trainee.images_seen, value


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.spool.close()


def cut(monkeypatch, error=errno.EIO):
    """Storage that fails until the returned function is called."""
    real, down = RunStorage.put, threading.Event()
    down.set()

    def put(self, source, name, file):
        if down.is_set():
            raise OSError(error, "Input/output error")
        real(self, source, name, file)

    monkeypatch.setattr(RunStorage, "put", put)
    monkeypatch.setattr(errors, "RETRY_S", (0.01,))
    return down.clear


def settle(spool, condition):
    for _ in range(500):
        spool.poll()
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not settle")


def test_a_saved_checkpoint_is_whole_in_storage_and_older_ones_go(bench):
    names = []
    for seen in (64, 128, 192):
        names.append(bench.save(seen))
        bench.spool.flush()  # else only the newest is uploaded next
    bench.spool._uploader.submit(int).result()  # what was queued before it is done
    assert bench.spool.stored == 192
    assert sorted(path.name for path in bench.storage.iterdir()) == names[1:]
    assert verify(bench.storage / names[2]).images_seen == 192
    assert [path.name for path in bench.local.iterdir()] == names[2:]
    assert bench.newest() == (192, 192.0)


def test_a_snapshot_does_not_see_later_steps(bench, monkeypatch):
    started = []
    real = spool_module.write_snapshot

    def slow(folder, snapshot):
        started.append(folder)
        time.sleep(0.2)
        return real(folder, snapshot)

    monkeypatch.setattr(spool_module, "write_snapshot", slow)
    bench.save(64)
    with torch.no_grad():
        for parameter in bench.trainee.generator.module.parameters():
            parameter.fill_(-1)
    bench.spool.flush()
    assert started
    assert bench.newest() == (64, 64.0)


def test_a_checkpoint_waits_until_the_one_before_is_whole_on_local_disk(bench, monkeypatch):
    """However slow that is: else nobody would finish the one before."""
    cut(monkeypatch)  # so that none is taken from local disk as it reaches storage
    real = spool_module.write_snapshot

    def slow(folder, snapshot):
        time.sleep(0.2)
        return real(folder, snapshot)

    monkeypatch.setattr(spool_module, "write_snapshot", slow)
    first = bench.save(64)
    assert not (bench.local / first / MANIFEST).exists()
    bench.save(128)
    assert verify(bench.local / first).images_seen == 64


def test_training_goes_on_while_storage_is_cut_and_the_newest_gets_there(bench, monkeypatch):
    restore = cut(monkeypatch)
    for seen in (64, 128, 192):
        bench.save(seen)
        settle(bench.spool, lambda: bench.spool._writing is None)
    assert newest_whole(bench.storage)[0] is None
    restore()
    bench.spool.flush()
    stored = RunStorage(bench.storage).names()
    # The first was on its way; of the others the newest followed it.
    assert [name[11:23] for name in stored] == ["000000000192", "000000000064"]
    assert "storage cannot be written" in bench.told[0]
    assert any("storage is back" in str(line) for line in bench.told)


def test_a_checkpoint_that_only_local_disk_has_is_gone_on_from_and_uploaded(bench, monkeypatch):
    bench.save(64)
    bench.spool.flush()
    restore = cut(monkeypatch)
    name = bench.save(128)
    settle(bench.spool, lambda: (bench.local / name / MANIFEST).is_file())
    bench.spool.close()  # the process dies
    restore()
    assert bench.newest() == (128, 128.0)
    bench.spool.flush()
    assert verify(bench.storage / name).images_seen == 128


def test_a_full_disk_loses_that_checkpoint_and_nothing_else(bench, monkeypatch):
    bench.save(64)
    bench.spool.flush()

    def full(folder, snapshot):
        folder.mkdir()
        (folder / "cut").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "write_snapshot", full)
        name = bench.save(128)
        bench.spool.flush()
    assert "checkpoint at 128 images was not written" in bench.told[-1]
    assert "No space left" in bench.told[-1]
    assert not (bench.local / name).exists()
    assert bench.newest() == (64, 64.0)
    bench.save(192)
    bench.spool.flush()
    assert bench.newest() == (192, 192.0)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "lost"])
@pytest.mark.parametrize("place", ["local", "storage", "both"])
def test_damage_in_one_place_costs_nothing_and_in_both_the_one_before_is_used(bench, harm, place):
    bench.save(64)
    name = bench.save(128)
    bench.spool.flush()
    places = {"local": [bench.local], "storage": [bench.storage]}
    for folder in places.get(place, [bench.local, bench.storage]):
        path = folder / name / "generator.rank0000.safetensors"
        content = bytearray(path.read_bytes())
        path.unlink()  # the two are hard links
        if harm == "truncated":
            path.write_bytes(content[:-100])
        elif harm == "flipped":
            content[-5] ^= 1
            path.write_bytes(content)
    assert bench.newest() == ((64, 64.0) if place == "both" else (128, 128.0))
    named = [line for line in bench.told if "damaged" in str(line) and "generator.rank" in line]
    if place == "both" or (place == "local" and harm == "flipped"):
        assert named


def test_there_may_be_none(bench):
    assert bench.newest() is None


def test_other_disks_are_copied_to(bench, monkeypatch):
    def no_link(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    name = bench.save(64)
    bench.spool.flush()
    shutil.rmtree(bench.local)
    assert verify(bench.storage / name).images_seen == 64
    assert bench.newest() == (64, 64.0)


def under(bench, number, base=(), heirs=()):
    """As the workers of the driver that has this lease."""
    (bench.storage / lease_name(number)).write_text("{}")
    fence = Fence(number, frozenset(base), frozenset(heirs))
    bench.spool = Spool(bench.local, bench.storage, 2, bench.told.append, fence=fence)
    return fence


def saved(bench, images_seen):
    """A checkpoint under the spool's lease, on local disk."""
    name = checkpoint_name(images_seen, bench.spool.fence.attempt("a1"))
    bench.trainee.images_seen = images_seen
    snapshot = take_snapshot(bench.trainee, bench.roles(), DESCRIPTION, "{}")
    bench.spool.save(snapshot, name)
    bench.spool.settle()
    return name


def stored_names(bench):
    bench.spool._uploader.submit(int).result()  # what was queued before it is done
    return sorted(path.name for path in bench.storage.glob("checkpoint_*"))


def test_what_the_last_driver_left_on_local_disk_becomes_the_next_ones(bench, monkeypatch):
    under(bench, 1)
    restore = cut(monkeypatch)
    left = saved(bench, 64)
    bench.spool.close()
    restore()
    fence = under(bench, 2, heirs={0, 1})
    found = Search(bench.spool).newest()
    assert found.name == fence.own(left) == "checkpoint_000000000064_000002-a1"
    bench.spool.flush()
    assert verify(bench.storage / found.name).images_seen == 64
    assert [path.name for path in bench.local.iterdir()] == [found.name]


def test_what_a_driver_of_before_the_last_left_on_local_disk_is_not_taken_up(bench, monkeypatch):
    under(bench, 1)
    restore = cut(monkeypatch)
    saved(bench, 128)
    bench.spool.close()
    restore()
    under(bench, 2)
    second = saved(bench, 64)
    bench.spool.flush()
    bench.spool.close()
    under(bench, 3, base={second}, heirs={2})
    assert Search(bench.spool).newest().name == second


def test_a_driver_with_a_checkpoint_of_its_own_takes_up_no_other_ones(bench):
    under(bench, 2, heirs={1})
    own = saved(bench, 64)
    bench.spool.flush()
    ours = bench.spool
    under(bench, 1)  # the superseded driver's workers, which share the node
    late = saved(bench, 128)
    bench.spool.flush()
    assert stored_names(bench) == [own, late]
    bench.spool = ours
    assert Search(ours).newest().name == own
    newer = saved(bench, 96)
    ours.flush()
    assert stored_names(bench) == [own, newer], "what does not count is removed"


def test_a_superseded_drivers_workers_remove_nothing_of_the_next_ones(bench):
    under(bench, 1)
    before = saved(bench, 64)
    bench.spool.flush()
    stale = bench.spool
    under(bench, 2, base={before}, heirs={1})
    newer = saved(bench, 96)
    bench.spool.flush()
    ours, bench.spool = bench.spool, stale
    for seen in (128, 160, 192):
        saved(bench, seen)
        stale.flush()
    stale.forget_after(before)
    stale.forget()
    assert {before, newer} <= set(stored_names(bench))
    assert (bench.local / newer).is_dir()
    assert Search(ours).newest().name == newer


def test_waiting_for_storage_ends_with_the_drivers_lease(bench, monkeypatch):
    restore = cut(monkeypatch)
    name = bench.save(64)
    assert bench.spool.flush(lambda: 3) == 3
    assert (bench.local / name / MANIFEST).is_file(), "it is kept on local disk"
    restore()
    assert bench.spool.flush() == 0
    assert verify(bench.storage / name).images_seen == 64
