"""Files of a store on this machine's own disk: fetched once, checked, and kept.

CACHE is SID_RAY_CACHE, else sid_ray in XDG_CACHE_HOME, else ~/.cache/sid_ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from sid_ray.storage.durable import locked, moved_into_place, replace_file
from sid_ray.storage.errors import retrying
from sid_ray.storage.places import expanded
from sid_ray.storage.store import Store

KEY_DIGITS = 12
REMEMBERED_BYTES = 1 << 30  # from here on a checksum takes seconds, in each process


class DamagedFileError(Exception):
    """What arrived is not the file that its checksum says."""


def cache_folder() -> Path:
    """Where fetched files are kept."""
    if chosen := os.environ.get("SID_RAY_CACHE"):
        return expanded(chosen).absolute()
    base = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.absolute() / "sid_ray"


def folder_of(store: Store, kind: str) -> Path:
    """This machine's folder for things of a store that is no disk: CACHE/kind/KEY/NAME."""
    parent = store.url.rpartition("/")[0]
    key = hashlib.sha256(parent.encode()).hexdigest()[:KEY_DIGITS]
    return cache_folder() / kind / key / store.name


def file_sha256(path: Path) -> str:
    """Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(files: Sequence[Path]) -> str:
    """Of all files, one after the other. Raises OSError.

    That of gigabytes is remembered beside what is fetched, for as long as each file has the same
    size and time of change.
    """
    stats = [path.stat() for path in files]
    if sum(stat.st_size for stat in stats) < REMEMBERED_BYTES:
        return read_sha256(files)
    names = "\n".join(str(path.absolute()) for path in files)
    note = cache_folder() / "checksums" / hashlib.sha256(names.encode()).hexdigest()[:20]
    seen = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        found = json.loads(note.read_text())
        if found["seen"] == seen:
            return str(found["sha256"])
    sha256 = read_sha256(files)
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        replace_file(note, json.dumps({"seen": seen, "sha256": sha256}), sync=False)
    return sha256


def read_sha256(files: Sequence[Path]) -> str:
    """The same, read from the files themselves. Raises OSError."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def fetch_checked(
    store: Store,
    name: str,
    target: Path,
    sha256: str,
    size: int | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Path:
    """A file of a store at a path: fetched once, however many processes of this machine ask.

    It is moved into place when its sha256 is right, so one that is there with ``size`` bytes is
    taken as it is; without a size it is read again. Waits while the store does not answer, and
    says so. Raises DamagedFileError, StoreError.
    """
    with locked(target):
        if target.is_file() and (
            target.stat().st_size == size if size is not None else file_sha256(target) == sha256
        ):
            return target
        with moved_into_place(target) as arrived:
            retrying(lambda: store.fetch(name, arrived), tell)
            if file_sha256(arrived) != sha256:
                raise DamagedFileError(f"{store}/{name} does not match its checksum")
    return target
