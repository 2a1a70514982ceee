"""A folder for as long as a process works in it; what killed processes left is removed by the next.

with scratch_folder(place, "push.") as scratch:
    with folder_moved_into_place(target, scratch) as new:   all of it, or what was there before
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sid_ray.storage.durable import PART, lock, sync_path

OLD = ".old" + PART  # how a folder is called that a new one replaces
YOUNG_S = 10.0  # a folder may be made, and not yet be locked


@contextmanager
def scratch_folder(place: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``place``, which is made, too; removed when the block ends. Its lock goes
    with its process, so that the next one that asks for the same prefix removes what a killed one
    left. Raises OSError.
    """
    place.mkdir(parents=True, exist_ok=True)
    remove_left(place, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=PART, dir=place) as name:
        file = os.open(name, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # no locks there: nobody removes it
                lock(file, patience_s=0)
            yield Path(name)
        finally:
            os.close(file)


def remove_left(place: Path, prefix: str) -> None:
    """Removes folders of a prefix whose process is no more."""
    for path in place.glob(f"{glob.escape(prefix)}*{PART}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < YOUNG_S:
                continue
            file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                lock(file, patience_s=0)
                shutil.rmtree(path)
            finally:
                os.close(file)


@contextmanager
def folder_moved_into_place(target: Path, within: Path) -> Iterator[Path]:
    """A folder ``within`` another on the target's disk to fill; it is moved to ``target`` when the
    block ends, and removed if it raises.

    What is at ``target`` then, a folder, is removed once the new one has its place, as is what a
    process that was killed meanwhile has left of an older one. Raises OSError.
    """
    temporary = within / f"{uuid.uuid4().hex[:6]}{PART}"
    old = target.with_name(f"{target.name}.{uuid.uuid4().hex[:6]}{OLD}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            sync_path(path)
        if target.exists():
            target.replace(old)
        try:
            temporary.replace(target)
        except OSError:
            if old.exists():
                old.replace(target)
            raise
        sync_path(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            for one in target.parent.glob(f"{glob.escape(target.name)}.??????{OLD}"):
                shutil.rmtree(one, ignore_errors=True)
