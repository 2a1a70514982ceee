"""One driver a run, on whatever machine, with its folder on a disk or in S3; a dead one is no
obstacle for long, and one that cannot say that it lives stops.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from sid_ray import run_folder
from sid_ray.errors import UserError
from sid_ray.run_folder import (
    LOG,
    RunFolder,
    RunRecord,
    note_record,
    only_driver,
    read_record,
    write_record,
)
from sid_ray.storage import lease as module
from sid_ray.storage import s3 as s3_store
from sid_ray.storage import waiting
from sid_ray.storage.errors import NotExclusiveError, UnreachableStoreError
from sid_ray.storage.fence import OLD_LEASE, lease_name, newest_number, read_fence, read_lease
from sid_ray.storage.lease import LeaseLostError, only_lease
from sid_ray.storage.store import Store
from sid_ray.storage.waiting import newest_lease, place
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_S", 0.05)


@pytest.fixture
def s3_run(bucket, tmp_path):
    return RunFolder(Store.at(f"{bucket}/runs/x"), tmp_path)


@pytest.fixture(params=["disk", "s3"])
def run(request, tmp_path):
    """A run's folder; in S3 with another folder for the driver's own files."""
    if request.param == "s3":
        return request.getfixturevalue("s3_run")
    (tmp_path / "x").mkdir()
    return RunFolder(Store.at(tmp_path / "x"), tmp_path / "x")


def held(store, number=7, **values):
    """Another driver's lease, of another machine unless ``values`` say something else."""
    known = {"host": "elsewhere", "pid": 7, "place": "elsewhere", "lock": "", "token": "t"}
    store.write(lease_name(number), json.dumps(known | {"term_s": 1.5} | values))


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    return gone.pid


def test_a_lease_has_a_number_that_grows_and_is_given_back(run):
    for number in (1, 2, 3):
        began = time.monotonic()
        with only_driver(run) as mine:
            assert mine.lease.number == mine.fence.number == newest_number(run.store) == number
            assert not read_lease(run.store, number).get("ended")
        assert time.monotonic() - began < 5
        assert read_lease(run.store, number)["ended"]
        assert [name for name in run.store.times() if "driver" in name] == [lease_name(number)]


def test_a_living_driver_shows_itself_by_renewing_and_is_named(run, capfd):
    held(run.store, term_s=20)
    renewing = threading.Timer(1.2, lambda: held(run.store, term_s=20, note="again"))
    renewing.start()
    with pytest.raises(UserError, match=r"process 7 on elsewhere .*stop it, or choose"):
        only_driver(run).__enter__()
    renewing.join()
    assert re.search(
        r"waiting up to (20|19|18) s for the lease of process 7 on", capfd.readouterr().err
    )


def test_a_process_of_this_machine_that_lives_is_refused_at_once(s3_run):
    """On a disk its lock says so: test_run_folder.py."""
    run = s3_run
    held(run.store, pid=os.getppid(), place=place(), term_s=60)
    began = time.monotonic()
    with pytest.raises(UserError, match=f"process {os.getppid()} on elsewhere"):
        only_driver(run).__enter__()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("known", ["pid", "lock", "ray"])
def test_a_driver_that_is_known_to_be_dead_is_not_waited_for(run, known, capfd):
    with only_driver(run) as mine:
        lock = read_lease(run.store, mine.lease.number)["lock"]
    values = {"pid": {"pid": dead_pid(), "place": place()}, "lock": {"lock": lock}}
    held(run.store, term_s=60, **values.get(known, {"job": "01"}))
    began = time.monotonic()
    with only_driver(run, gone=lambda lease: lease.get("job") == "01") as mine:
        assert mine.lease.number == 8
    assert time.monotonic() - began < 5
    assert "waiting" not in capfd.readouterr().err


def test_the_lease_of_a_driver_that_is_not_heard_of_runs_out(run, capfd):
    held(run.store)
    began = time.monotonic()
    with only_driver(run) as mine:
        assert mine.lease.number == 8
    assert time.monotonic() - began < 6
    assert "waiting up to" in capfd.readouterr().err


def test_a_damaged_lease_and_an_old_one_are_waited_for_and_replaced(run, monkeypatch):
    monkeypatch.setattr(waiting, "TERM_S", 1.0)
    for name, text in ((lease_name(4), "{"), (lease_name(6), "[]"), (OLD_LEASE, '{"pid": 1}')):
        run.store.write(name, text)
        with only_driver(run):
            pass
        assert run.store.size(name) is None
    assert newest_number(run.store) == 8


def test_numbers_go_on_where_somebody_has_removed_the_leases(run):
    (run.store / "checkpoint_000000000064_000003-a1").write("manifest.json", "{}")
    with only_driver(run) as mine:
        assert mine.lease.number == 4
    run.store.remove(lease_name(4))
    write_record(run.store, RunRecord("{}", lease=5))
    with only_driver(run) as mine:
        assert mine.lease.number == 6


def test_of_many_that_start_at_once_one_goes_on(run):
    """Each process of a machine has the lock first: here they are of several."""
    held_by, refused, going = [], [], threading.Barrier(6)

    def start():
        going.wait()
        try:
            with only_lease(run.store, 9.0) as lease:
                held_by.append(lease.number)
                wait_for(lambda: len(refused) == 5, "the others to be refused")
        except UserError as error:
            refused.append(str(error))

    with pytest.MonkeyPatch.context() as patch:
        for where in (module, waiting):
            patch.setattr(where, "place", lambda: f"host {threading.get_ident()}")
        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert held_by == [1], "the others saw it renewed"
    assert len(refused) == 5


def test_a_store_without_conditional_puts_is_found_out_and_one_of_two_goes_on(s3_run, monkeypatch):
    monkeypatch.setattr(module, "SETTLE_S", 0.1)
    real = s3_store.client_of

    class Ignores:
        """Puts whatever is asked."""

        def __init__(self, bucket):
            self.client = real(bucket)

        def put_object(self, IfNoneMatch, **asked):  # noqa: N803
            return self.client.put_object(**asked)

    monkeypatch.setattr(s3_store, "client_of", Ignores)
    with pytest.raises(NotExclusiveError):
        s3_run.store.write_new("file", "text")
    with only_driver(s3_run) as mine:
        assert read_lease(s3_run.store, mine.lease.number)["token"] == mine.lease.token
    # Another one's file comes between this one's put and its look.
    monkeypatch.setattr(
        module.time, "sleep", lambda s: held(s3_run.store, 2, pid=os.getppid(), place=place())
    )
    with pytest.raises(UserError, match=f"process {os.getppid()}"):
        only_driver(s3_run).__enter__()


def test_a_file_that_must_be_new_is_made_once(run):
    assert run.store.write_new("new", "first")
    assert not run.store.write_new("new", "second")
    assert run.store.read_text("new") == "first"


def test_it_is_renewed_and_the_log_goes_with_it(s3_run, monkeypatch):
    monkeypatch.setattr(run_folder, "LOG_S", 0.1)
    (s3_run.local / LOG).write_text("a line")
    with only_driver(s3_run, term_s=9.0) as mine:
        first = newest_lease(s3_run.store)
        wait_for(lambda: s3_run.store.size(LOG) is not None, "the log", 10)
        wait_for(lambda: newest_lease(s3_run.store).heard > first.heard, "a renewal", 10)
        assert mine.left_s > 6
        (s3_run.local / LOG).write_text("a line and another")
    assert s3_run.store.read_text(LOG) == "a line and another", "the log is uploaded at the end"


def test_what_ray_knows_is_in_the_lease_soon(run):
    with only_driver(run) as mine:
        mine.lease.note(job="01", node="n")
        wait_for(lambda: read_lease(run.store, 1).get("job") == "01", "the note", 5)
        assert read_lease(run.store, 1)["base"] == []


def cut(monkeypatch):
    """A store that does not answer until the returned event is cleared."""
    real, down = Store.times, threading.Event()

    def times(self):
        if down.is_set():
            raise UnreachableStoreError("no answer")
        return real(self)

    monkeypatch.setattr(Store, "times", times)
    down.set()
    return down


def test_a_driver_that_cannot_renew_its_lease_stops_before_another_may_have_it(run, monkeypatch):
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    with only_driver(run, term_s=1.8) as mine:
        down = cut(monkeypatch)
        wait_for(lambda: mine.lease._trouble, "a failure", 5)
        down.clear()
        wait_for(lambda: mine.left_s > 1.5, "a short outage to be over", 5)
        mine.check_lease()
        down = cut(monkeypatch)
        with pytest.raises(LeaseLostError, match=r"renewed for 1 s \(no answer.*same command"):
            while mine.left_s:
                mine.check_lease()
                time.sleep(0.02)
        assert 0 < mine.left_s < 0.61, "there is time to stop in"
        with pytest.raises(LeaseLostError):
            note_record(mine, RunRecord("{}"))
        time.sleep(0.7)
        down.clear()
        assert newest_lease(run.store).is_free("", lambda lease: False)
    assert not read_lease(run.store, 1).get("ended")


def test_a_driver_that_was_taken_over_says_so_and_leaves_all_alone(run):
    with only_driver(run, term_s=9.0) as mine:
        note_record(mine, RunRecord("{}", "first"))
        held(run.store, 2, base=[], heirs=[1])
        wait_for(lambda: not mine.left_s, "its next look", 5)
        with pytest.raises(LeaseLostError, match="process 7 on elsewhere has taken over run 'x'"):
            mine.check_lease()
        with pytest.raises(LeaseLostError):
            note_record(mine, RunRecord("{}", "another"))
    assert read_record(run.store) == RunRecord("{}", "first", read_record(run.store).key, lease=1)
    assert read_lease(run.store, 2)["token"] == "t"
    assert read_fence(run.store).number == 2


def test_a_full_disk_does_not_cost_the_lease(tmp_path, monkeypatch):
    def full(self, name, data):
        raise OSError(28, "No space left on device")

    with only_lease(Store.at(tmp_path), 1.8) as lease:
        monkeypatch.setattr(Store, "write", full)
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            lease.check()
            time.sleep(0.05)


def test_a_folder_that_is_not_mounted_any_more_is_not_written_into(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with only_lease(Store.at(folder), 1.5) as lease:
        folder.rename(tmp_path / "away")
        wait_for(lambda: lease.left_s < lease.stop_s, "the lease to run out", 5)
    assert not folder.exists()


def test_a_lease_that_is_taken_between_two_looks_is_seen(run, monkeypatch):
    """A start that found none must not take the number after one that came meanwhile."""
    real, late = module.newest_lease, []

    def newest(store):
        found = real(store)
        if not late:
            late.append(True)
            held(store, 1, pid=os.getppid(), place=place(), term_s=60)
        return found

    monkeypatch.setattr(module, "newest_lease", newest)
    with pytest.raises(UserError, match=f"process {os.getppid()}"), only_lease(run.store):
        pass
    assert newest_number(run.store) == 1
