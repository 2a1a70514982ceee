"""Files of a store on this machine's own disk: fetched once, checked, and kept.

CACHE is SID_RAY_CACHE, else sid_ray in XDG_CACHE_HOME, else ~/.cache/sid_ray.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from sid_ray.storage.durable import locked, moved_into_place
from sid_ray.storage.errors import retrying
from sid_ray.storage.places import expanded
from sid_ray.storage.store import Store

KEY_DIGITS = 12


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
