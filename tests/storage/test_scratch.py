"""Folders that processes work in: what killed ones leave goes, what live ones have stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sid_ray.storage.scratch import folder_moved_into_place, scratch_folder

WORKS = """
import sys, time
from pathlib import Path
from sid_ray.storage.scratch import folder_moved_into_place, scratch_folder
target = Path(sys.argv[1])
scratch = scratch_folder(target.parent, ".out.")
with scratch as place, folder_moved_into_place(target, place) as new:
    (new / "weights").write_text("new")
    print(place.name, flush=True)
    time.sleep(600)
"""


def aged(folder: Path) -> None:
    os.utime(folder, (0, 0))


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    """And only that: not while it lives, nor what is called otherwise."""
    mine = [tmp_path / name for name in (".out.notes", ".output.x.part", "out.part")]
    for each in mine:
        each.mkdir()
        aged(each)
    command = [sys.executable, "-c", WORKS, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            left = tmp_path / process.stdout.readline().strip()
            aged(left)
            with scratch_folder(tmp_path, ".out."):
                assert left.is_dir(), "its process works in it"
        finally:
            process.kill()
    assert left.is_dir() and not (tmp_path / "out").exists()
    with scratch_folder(tmp_path, ".out.") as scratch:
        assert not left.exists() and scratch.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted(mine)


def test_a_folder_replaces_another_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    for text in ("first", "second"):
        # As a process leaves it that is killed between the two moves and what follows.
        (tmp_path / "out.abc123.old.part").mkdir()
        with (
            scratch_folder(tmp_path, ".out.") as scratch,
            folder_moved_into_place(target, scratch) as new,
        ):
            (new / text).touch()
    with (
        pytest.raises(ZeroDivisionError),
        scratch_folder(tmp_path, ".out.") as scratch,
        folder_moved_into_place(target, scratch) as new,
    ):
        (new / "third").touch()
        _ = 1 / 0
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
