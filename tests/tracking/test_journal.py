"""The journal: nothing that was appended is lost, whatever kills or fills what is below it."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from sid_ray.tracking import journal
from sid_ray.tracking.journal import JOURNAL, Journal


def steps(kept: Journal, after: int = 0) -> list[int]:
    return [record.values["step"] for record in kept.records(after)]


def test_what_is_not_confirmed_is_there_at_the_next_start(tmp_path):
    first = Journal(tmp_path, "key")
    for step in range(5):
        assert first.append("metrics", {"step": step}).number == step + 1
    first.confirm(3, "run")
    first.close()
    again = Journal(tmp_path, "key")
    assert (again.sent, again.sent_to, again.last) == (3, "run", 5)
    assert steps(again, again.sent) == [3, 4]
    assert steps(again) == [0, 1, 2, 3, 4], "all of it, for a store that lost the run"
    assert again.append("metrics", {"step": 5}).number == 6


@pytest.mark.parametrize("torn", [b'[3, "metri', b'[3, "metrics", {"step": 2}]', b"\0\0\0"])
def test_a_torn_last_line_is_left_out_and_written_over(tmp_path, torn):
    first = Journal(tmp_path, "key")
    first.append("metrics", {"step": 0})
    first.append("metrics", {"step": 1})
    first.close()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(torn)
    again = Journal(tmp_path, "key")
    assert steps(again) == [0, 1]
    again.append("metrics", {"step": 9})
    again.close()
    assert steps(Journal(tmp_path, "key")) == [0, 1, 9]


def test_records_of_a_deleted_run_are_not_sent(tmp_path):
    first = Journal(tmp_path, "old")
    first.append("metrics", {"step": 0})
    first.append("metrics", {"step": 1})
    first.confirm(1, "run")
    first.close()
    new = Journal(tmp_path, "new")
    assert (new.records(0), new.sent, new.sent_to, new.last) == ([], 0, "", 0)


def test_a_journal_that_is_lost_does_not_use_numbers_again(tmp_path):
    first = Journal(tmp_path, "key")
    first.append("metrics", {"step": 0})
    first.append("metrics", {"step": 1})
    first.confirm(2, "run")
    first.close()
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(lines[0])
    again = Journal(tmp_path, "key")
    again.append("metrics", {"step": 7})
    assert steps(again, again.sent) == [7]


def test_a_full_disk_is_told_once_and_made_good(tmp_path, monkeypatch):
    told: list[str] = []
    kept = Journal(tmp_path, "key", told.append)
    kept.append("metrics", {"step": 0})
    write = os.pwrite

    def full(file, data, offset):
        if len(data) > 5:
            return write(file, data[:5], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for step in range(1, 4):
        kept.append("metrics", {"step": step})
    assert steps(kept) == [0, 1, 2, 3], "from memory"
    assert len(told) == 1
    assert "No space left on device" in told[0]
    monkeypatch.setattr(os, "pwrite", write)
    kept.confirm(2, "run")
    kept.append("metrics", {"step": 4})
    assert len(told) == 2
    kept.close()
    assert steps(Journal(tmp_path, "key"), 2) == [2, 3, 4]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    told: list[str] = []
    kept = Journal(tmp_path / "file" / "run", "key", told.append)
    kept.append("metrics", {"step": 0})
    kept.confirm(0, "run")
    assert steps(kept) == [0]
    assert len(told) == 1


def test_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LOCK_S", 0.1)
    first, told = Journal(tmp_path, "key"), []
    second = Journal(tmp_path, "key", told.append)
    assert "another process has had it" in told[0]
    second.append("metrics", {"step": 0})
    first.close()
    assert Journal(tmp_path, "key").records(0) == []


WRITER = """
import sys
from pathlib import Path
from sid_ray.tracking.journal import Journal
kept = Journal(Path(sys.argv[1]), "key")
for step in range(10**9):
    kept.append("metrics", {"step": step, "metrics": {"loss": 0.5}})
    print(step, flush=True)
"""


def test_kill_9_loses_nothing_that_was_answered(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "0\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    answered = process.communicate(timeout=20)[0].split()
    found = steps(Journal(tmp_path, "key"))
    assert len(answered) > 10
    assert found == list(range(len(found)))
    assert len(found) >= int(answered[-2]) + 1
