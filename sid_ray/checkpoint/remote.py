"""A run's checkpoints where all nodes see them: on a disk, or in S3."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from sid_ray.checkpoint.find import checkpoints, sealed
from sid_ray.storage.cache import fetch_checked
from sid_ray.storage.durable import link_or_copy, replace_file, sync_path
from sid_ray.storage.fence import MANIFEST, OPEN, Fence, newest_number
from sid_ray.storage.store import Store

Tell = Callable[[str], None]


def remove(store: Store, unwanted: Callable[[str], bool]) -> None:
    """Removes the checkpoints whose names are unwanted; others may do so at once.

    On a disk what cannot be removed stays. Raises StoreError from other stores.
    """
    for name in filter(unwanted, checkpoints(store, OPEN)):
        try:
            store.remove(f"{name}/{MANIFEST}")  # first, so that it never looks whole meanwhile
        except OSError:
            if not store.is_local:
                raise
        store.remove_tree(name)


class LocalFileLostError(Exception):
    """What was to be uploaded is not on local disk any more."""


class RunStorage:
    """The run's folder, on whatever all nodes see: a disk, or S3. ``fence``: what of it counts."""

    def __init__(self, place: Store | Path, fence: Fence = OPEN):
        self.store = place if isinstance(place, Store) else Store.at(place)
        self.fence = fence

    def names(self) -> list[str]:
        """Checkpoints with a manifest that count, newest first.

        Raises OSError where they cannot be listed.
        """
        return sealed(self.store, self.fence)

    def put(self, source: Path, name: str, file: str) -> None:
        """Stores a file under its name in one move; on the same disk without a copy."""
        if not source.is_file():
            raise LocalFileLostError(f"{source} is gone")
        if not self.store.is_local:
            self.store.put(source, f"{name}/{file}")
            return
        # Not Store.put, which makes the run's folder: where it is not mounted, nothing must be
        # written into its place.
        target = self.store.folder / name / file
        (self.store.folder / name).mkdir(exist_ok=True)
        target.parent.mkdir(exist_ok=True)
        link_or_copy(source, target, folder=True)  # what is older may be removed for it

    def put_text(self, text: str, name: str, file: str) -> None:
        if not self.store.is_local:
            self.store.write(f"{name}/{file}", text)
            return
        replace_file(self.store.folder / name / file, text, folder=True)
        sync_path(self.store.folder)  # also the checkpoint's own name is there to stay

    def why(self, error: OSError) -> str:
        """What went wrong, the same on every rank: without the name of a file in S3."""
        return re.sub(re.escape(self.store.url) + r"/\S+: ", f"{self.store}: ", str(error))

    def read_text(self, name: str, file: str) -> str:
        return self.store.read_text(f"{name}/{file}")

    def here(self, name: str, file: str, local: Path) -> Path:
        """Where a file is, or will be once it is fetched: on the disk, else in ``local``."""
        return (self.store.folder if self.store.is_local else local) / name / file

    def fetch(
        self, name: str, file: str, local: Path, sha256: str, size: int | None, tell: Tell
    ) -> None:
        """Brings a file of S3 to this node's disk, where ``here`` says; nothing from a disk."""
        if not self.store.is_local:
            target = self.here(name, file, local)
            fetch_checked(self.store, f"{name}/{file}", target, sha256, size, tell)

    def keep(self, number: int) -> None:
        """Removes all but the newest whole checkpoints, older ones that never became whole, and
        those that do not count."""
        whole = self.names()

        def unwanted(name: str) -> bool:
            older = name not in whole[:number] and name < whole[0]
            return older or not self.fence.accepts(name)

        if whole:
            self.remove(unwanted)

    def remove(self, unwanted: Callable[[str], bool]) -> None:
        """Removes the checkpoints whose names are unwanted; none where another driver has the run.

        Raises StoreError from S3.
        """
        if newest_number(self.store) > self.fence.number:
            return
        may_go = self.fence.may_remove

        remove(self.store, lambda name: may_go(name) and unwanted(name))
