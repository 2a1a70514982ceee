"""Durable files: nothing is lost beside other writers, after a cut anywhere, or after kill -9."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.storage import durable
from sid_ray.storage.durable import (
    HeldError,
    append_line,
    json_line,
    locked,
    moved_into_place,
    only_writer,
    read_values,
    remove_parts,
    replace_file,
    values_in,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FORK = multiprocessing.get_context("fork")


def all_end(processes, timeout=60):
    for process in processes:
        process.daemon = True
        process.start()
    for process in processes:
        process.join(timeout)
        assert process.exitcode == 0


# Lines of JSON ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(VALUES, max_size=5))
def test_lines_come_back_as_they_were_written(values):
    assert values_in(b"".join(map(json_line, values))) == (values, b"")


@settings(max_examples=40, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4), VALUES, st.data())
def test_a_cut_at_any_byte_costs_the_line_that_it_falls_in(tmp_path_factory, values, one, data):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    text = b"".join(map(json_line, values))
    cut = data.draw(st.integers(0, len(text)))
    path.write_bytes(text[:cut] + data.draw(st.sampled_from([b"", b"\0\0\0"])))
    whole = values[: text.count(b"\n", 0, cut)]
    assert read_values(path) == whole
    append_line(path, one)
    assert read_values(path) == [*whole, one]
    assert values_in(path.read_bytes())[1] == b""


def test_a_long_cut_line_is_found_from_its_end(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"[1]\n" + b"x" * 10_000)
    append_line(path, [2])
    assert path.read_bytes() == b"[1]\n[2]\n"
    path.write_bytes(b"x" * 10_000)
    append_line(path, [3])
    assert path.read_bytes() == b"[3]\n"


def append_many(path, who, count):
    for number in range(count):
        append_line(path, [who, number, "x" * (number * 37 % 5000)], sync=False)


def test_many_processes_append_and_read_and_lose_nothing(tmp_path):
    path, count, writers = tmp_path / "x.jsonl", 60, 6
    seen, ended = [], threading.Event()

    def look():
        while not ended.is_set():
            values = read_values(path)
            assert None not in values, "a reader never sees a part of a line"
            seen.append(len(values))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        all_end([FORK.Process(target=append_many, args=(path, w, count)) for w in range(writers)])
    finally:
        ended.set()
        reader.join()
    found = [value[:2] for value in read_values(path)]
    assert sorted(found) == [[w, n] for w in range(writers) for n in range(count)]
    for writer in range(writers):
        assert [n for w, n in found if w == writer] == list(range(count)), "in its order"
    assert seen == sorted(seen), "what was read once is there afterwards"


def replace_many(path, count):
    """Rewrites the whole file with all that is in it, as a merge does."""
    for _ in range(count):
        with only_writer(path) as file:
            replace_file(path, b"".join(map(json_line, file.values())), sync=False)


def test_appending_beside_one_who_replaces_the_file(tmp_path):
    path = tmp_path / "x.jsonl"
    jobs = [FORK.Process(target=append_many, args=(path, who, 50)) for who in range(3)]
    all_end([*jobs, FORK.Process(target=replace_many, args=(path, 50))])
    assert sorted(v[:2] for v in read_values(path)) == [[w, n] for w in range(3) for n in range(50)]


def test_what_does_not_fit_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    append_line(path, [1])
    write = os.pwrite

    def full(file, data, offset):
        if len(data) > 5:
            return write(file, data[:5], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        append_line(path, ["much longer than five bytes"])
    assert path.read_bytes() == b"[1]\n"


APPENDING = """
import sys
from pathlib import Path
from sid_ray.storage.durable import append_line
for number in range(10**9):
    append_line(Path(sys.argv[1]), [number, "x" * (number % 3000)], sync=False)
    print(number, flush=True)
"""


def killed(code, path, after_s):
    """Runs code until kill -9; what it has printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    first = process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    return [first.strip(), *process.communicate(timeout=20)[0].split()]


def test_kill_9_loses_nothing_that_was_appended(tmp_path):
    path = tmp_path / "x.jsonl"
    last = int(killed(APPENDING, path, 0.3)[-2])
    found = [value[0] for value in read_values(path)]
    assert last > 10 and found == list(range(len(found))) and len(found) > last
    append_line(path, "free")  # the lock went with its process
    assert read_values(path)[-1] == "free"


# The atomic replace -------------------------------------------------------------------------------

REPLACING = """
import sys
from pathlib import Path
from sid_ray.storage.durable import moved_into_place
for number in range(10**9):
    with moved_into_place(Path(sys.argv[1]), sync=False) as new, new.open("w") as file:
        for _ in range(50):
            file.write(f"{number} " * 200)
    print(number, flush=True)
"""


def test_kill_9_in_the_middle_leaves_the_old_file_or_the_new_one(tmp_path):
    for turn in range(4):
        path = tmp_path / f"{turn}.txt"
        told = killed(REPLACING, path, 0.02 + 0.013 * turn)
        words = path.read_text().split()
        assert len(words) == 50 * 200 and len(set(words)) == 1
        assert int(words[0]) >= int(told[-2]), "what was told is not older than the file"


def write_many(path, letter):
    for _ in range(100):
        replace_file(path, letter * 5000, sync=False)


def test_readers_beside_writers_of_one_file_see_a_whole_one(tmp_path):
    path = tmp_path / "x"
    replace_file(path, "a" * 5000)
    jobs = [FORK.Process(target=write_many, args=(path, letter)) for letter in "bcd"]
    for job in jobs:
        job.daemon = True
        job.start()
    looks = 0
    while any(job.is_alive() for job in jobs):
        text = path.read_text()
        looks += 1
        assert len(text) == 5000 and len(set(text)) == 1
    assert looks and [job.exitcode for job in jobs] == [0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_what_raises_changes_nothing(tmp_path):
    path = tmp_path / "x"
    replace_file(path, "old")
    with pytest.raises(ZeroDivisionError), moved_into_place(path) as new:
        new.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in ("a.png", "b.png.12-ab.part", "c.png.13-cd.part", "d.json.12-ab.part"):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / "b.png.12-ab.part", (0, 0))
    remove_parts(tmp_path, "*.png", 60)
    assert not (tmp_path / "b.png.12-ab.part").exists() and len(list(tmp_path.iterdir())) == 3
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    remove_parts(tmp_path / "none")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, ["file", "moved"]),
        ({"sync": False}, ["moved"]),
        ({"folder": True}, ["file", "moved", "folder"]),
    ],
)
def test_what_is_with_the_disk_before_and_after_the_move(tmp_path, monkeypatch, choice, expected):
    path, order = tmp_path / "x", []

    def note(file):
        moved = ["moved"] if path.exists() and "moved" not in order else []
        order.extend([*moved, "folder" if Path(f"/proc/self/fd/{file}").is_dir() else "file"])

    monkeypatch.setattr(durable, "sync_file", note)
    replace_file(path, "text", **choice)
    assert order + (["moved"] if "moved" not in order else []) == expected


# The lock -----------------------------------------------------------------------------------------


def count_up(path, count):
    for _ in range(count):
        with locked(path):
            replace_file(path, str(int(path.read_text()) + 1), sync=False)


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    all_end([FORK.Process(target=count_up, args=(path, 100)) for _ in range(4)])
    assert path.read_text() == "400"


def test_who_does_not_want_to_wait_is_told(tmp_path):
    path = tmp_path / "deep" / "x"
    with locked(path):
        began = time.monotonic()
        with pytest.raises(HeldError, match="another process has had it"), locked(path, 0.2):
            pass
        assert 0.2 <= time.monotonic() - began < 5
    with locked(path, 0):
        pass


def test_a_file_that_was_replaced_while_one_waited_is_taken_anew(tmp_path):
    path = tmp_path / "x.jsonl"
    append_line(path, "old")
    with only_writer(path) as file:
        job = FORK.Process(target=append_line, args=(path, "later"), daemon=True)
        job.start()
        time.sleep(0.2)  # it waits for the old file's lock
        replace_file(path, json.dumps([*file.values(), "new"]) + "\n")
    job.join(20)
    assert read_values(path) == [["old", "new"], "later"]
