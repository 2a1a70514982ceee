"""Which checkpoint a run goes on from: the newest that is whole, on local disks or in storage.

The ranks put together what each node has on its disk. A checkpoint is whole when storage has its
manifest, or when every file of it lies on some node's disk: then its upload, which a crash has cut,
is finished first, so that all ranks can read all of it. Files on a node's own disk are read there;
what is only in S3 is fetched to that disk, file by file, by the first rank of the node that reads
it. Everything is checked against the manifest's sha256, each file once a place and spread over
ranks; what is damaged is named and left aside. Where storage cannot be read and no whole checkpoint
is on local disks, the search waits: a run whose storage is away must not begin anew.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sid_ray.checkpoint.find import checkpoints, manifest_of, present
from sid_ray.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpointError,
    Manifest,
    damage_of,
    images_seen_of,
    parse_manifest,
)
from sid_ray.checkpoint.writer import Spool, write_manifest
from sid_ray.distributed.fragments import gathered, world
from sid_ray.storage.cache import DamagedFileError
from sid_ray.storage.errors import StoreError, UnreachableStoreError, pause_s, retrying
from sid_ray.storage.fence import OPEN, number_of
from sid_ray.storage.shared import this_machine
from sid_ray.storage.store import Store

STORAGE_PATIENCE_S = 3.0  # before local disks are looked at instead


@dataclass(frozen=True)
class Reachable:
    """A whole checkpoint, and where this rank reads its files.

    ``uploads`` are the files that this rank has to bring to storage first, None where it is there.
    ``fetch`` brings a file of storage to its path where storage is no disk.
    """

    name: str
    manifest: Manifest
    paths: Mapping[str, Path]
    uploads: list[str] | None = None
    fetch: Callable[[str], None] = lambda file: None
    in_storage: frozenset[str] = frozenset()  # files that this rank's node has not

    def where(self, file: str) -> Path:
        """A file's path; it is there afterwards. Raises DamagedFileError, StoreError."""
        if file in self.in_storage:
            self.fetch(file)
        return self.paths[file]


@dataclass(frozen=True)
class Shelf:
    """What one rank sees on its node's disk: checkpoint -> files of the right size."""

    node: str
    files: Mapping[str, frozenset[str]]


def writer_of(file: str, index: int) -> int:
    """The rank that wrote a file, which reads it again at the same number; else any number."""
    match = re.search(r"\.rank(\d+)\.", file)
    return int(match[1]) if match else index


class Search:
    """One search for the newest whole checkpoint. Its methods are collectives."""

    def __init__(self, spool: Spool):
        self.spool = spool
        self.rank, self.ranks = world()
        self._bad: set[tuple[str, str]] = set()  # (node or "storage", checkpoint)
        self._told: set[str] = set()
        self._waits = 0
        self._trouble: OSError | None = None  # why storage cannot be read, on rank 0

    def newest(self, images_seen: int | None = None) -> Reachable | None:
        """The newest whole checkpoint, None for none. Tells what was wrong with newer ones.

        With ``images_seen``, the newest of those that had seen no more.
        """
        while True:
            shelves = gathered(self._shelf(), self.spool.group)
            stored, away = gathered(self._stored(), self.spool.group)[0]
            names = self._that_count({n for s in shelves for n in s.files}, stored)
            if images_seen is not None:
                names = [name for name in names if images_seen_of(name) <= images_seen]
            found = next(filter(None, (self._try(n, shelves, n in stored) for n in names)), None)
            if found is None and not away:
                return None
            if found is None:
                self._wait()
            elif not self.spool.fence.accepts(found.name):
                self._adopt(found.name, shelves)
            elif self._sound(found, shelves):
                self._finish_upload(found, shelves)
                return found

    def _that_count(self, local: set[str], stored: list[str]) -> list[str]:
        """Newest first. Those that an earlier driver left on local disks alone count as long as
        this one has none of its own."""
        fence = self.spool.fence
        names = {name for name in local if fence.accepts(name)} | set(stored)
        if not any(number_of(name) == fence.number for name in names):
            names |= {name for name in local if fence.may_adopt(name)}
        return sorted(names, reverse=True)

    def _adopt(self, name: str, shelves: list[Shelf]) -> None:
        """Gives an earlier driver's checkpoint this one's number on every node's disk."""
        if self._ranks_here(shelves)[0] == self.rank and name in shelves[self.rank].files:
            (self.spool.local / name).rename(self.spool.local / self.spool.fence.own(name))
        gathered(None, self.spool.group)

    def _shelf(self) -> Shelf:
        node = f"{this_machine()}:{self.spool.local}"
        files: dict[str, frozenset[str]] = {}
        disk = Store.at(self.spool.local)
        for name in checkpoints(disk, OPEN):
            if (node, name) in self._bad:
                continue
            with contextlib.suppress(DamagedCheckpointError, OSError):  # never whole, or removed
                files[name] = present(disk, name, manifest_of(disk, name))
        return Shelf(node, files)

    def _stored(self) -> tuple[list[str], bool]:
        """Names in storage, from rank 0, and whether it is away: then there are the local disks."""
        if self.rank > 0:
            return [], False
        patience_s = STORAGE_PATIENCE_S if not self._waits else 0.0
        try:
            names = retrying(self.spool.storage.names, give_up_s=patience_s)
        except OSError as error:
            self._trouble = error
            if self.spool.goes_away():
                why = self.spool.storage.why(error)
                self.spool.tell(f"storage cannot be read ({why}): looking on local disks")
            return [], True
        self.spool.is_back()
        return [name for name in names if ("storage", name) not in self._bad], False

    def _wait(self) -> None:
        """No whole checkpoint is within reach and storage may hold one.

        Raises StoreError where waiting mends nothing: no access, no bucket.
        """
        trouble = self._trouble
        if isinstance(trouble, StoreError) and not isinstance(trouble, UnreachableStoreError):
            raise trouble
        if self._waits == 0:
            self._tell_once("no whole checkpoint on local disks: waiting for storage")
        if self.rank == 0:
            time.sleep(pause_s(self._waits))
        self._waits += 1

    def _try(self, name: str, shelves: list[Shelf], stored: bool) -> Reachable | None:
        """A checkpoint within every rank's reach, as far as names and sizes tell."""
        manifest = self._manifest(name, shelves, stored)
        if manifest is None:
            return None
        uploads = None
        everywhere = [shelf.files.get(name, frozenset()) for shelf in shelves]
        if not stored:
            missing = set(manifest.files) - frozenset().union(*everywhere)
            if missing:
                self._tell_once(f"{name} is on local disks only, without {min(missing)}")
                return None
            first = {
                f: next(r for r in range(self.ranks) if f in everywhere[r]) for f in manifest.files
            }
            uploads = [file for file, rank in first.items() if rank == self.rank]
        local, storage, mine = self.spool.local, self.spool.storage, everywhere[self.rank]
        paths = {
            f: local / name / f if f in mine else storage.here(name, f, local)
            for f in manifest.files
        }
        elsewhere = frozenset(manifest.files.keys() - mine)

        def fetch(file: str) -> None:
            digest, size = manifest.files[file], manifest.sizes.get(file)
            storage.fetch(name, file, local, digest, size, self.spool.tell)
            if not storage.store.is_local and not (local / name / MANIFEST).exists():
                with contextlib.suppress(OSError):  # the next start on this node finds it here
                    write_manifest(local / name, manifest)

        return Reachable(name, manifest, paths, uploads, fetch, elsewhere)

    def _finish_upload(self, found: Reachable, shelves: list[Shelf]) -> None:
        """Brings to storage what a crash left on local disks; waits where a rank needs it."""
        if found.uploads is None:
            return
        self.spool.upload(found.name, found.manifest, found.uploads)
        if any(len(s.files.get(found.name, ())) < len(found.manifest.files) for s in shelves):
            self.spool.flush()

    def _manifest(self, name: str, shelves: list[Shelf], stored: bool) -> Manifest | None:
        """The manifest, read by one rank for all."""
        reader = next((r for r, shelf in enumerate(shelves) if name in shelf.files), 0)
        at_hand = name in shelves[reader].files
        text = ""
        if self.rank == reader:
            local, storage = self.spool.local / name / MANIFEST, self.spool.storage
            try:
                if at_hand:
                    text = local.read_text()
                else:  # one that does not answer is waited for: the state must not be lost
                    text = retrying(lambda: storage.read_text(name, MANIFEST), self.spool.tell)
            except (OSError, UnicodeDecodeError) as error:
                if isinstance(error, StoreError) and not isinstance(error, FileNotFoundError):
                    raise  # it is there: without it the run would begin anew
                self.spool.tell(f"damaged checkpoint skipped: {name}: {error}")
        text = gathered(text, self.spool.group)[reader]
        try:
            return parse_manifest(text, name) if text else None
        except DamagedCheckpointError as error:
            self._tell_once(f"damaged checkpoint skipped: {error}")
            return None

    def _sound(self, found: Reachable, shelves: list[Shelf]) -> bool:
        """Checks every file in every place it is read from; leaves a damaged place aside."""
        name, ranks_here = found.name, self._ranks_here(shelves)
        has = [shelf.files.get(name, frozenset()) for shelf in shelves]
        lacking = {f: [r for r in range(self.ranks) if f not in has[r]] for f in found.paths}
        damage = []
        for index, (file, digest) in enumerate(found.manifest.files.items()):
            local = file in has[self.rank]
            if not local and found.uploads is not None:
                continue  # checked where it lies
            readers = ranks_here if local else lacking[file]
            if readers[writer_of(file, index) % len(readers)] != self.rank:
                continue
            wrong = self._damage(found, file, digest)
            if wrong:
                place = shelves[self.rank].node if local else "storage"
                damage.append((place, f"{name}: {file} {wrong}"))
        every = [item for theirs in gathered(damage, self.spool.group) for item in theirs]
        for place, text in every:
            self._tell_once(f"damaged checkpoint skipped: {text}")
            self._bad.add((place, name))
            if place == shelves[self.rank].node:
                shutil.rmtree(self.spool.local / name, ignore_errors=True)
        return not every

    def _damage(self, found: Reachable, file: str, digest: str) -> str:
        """What is wrong with a file where this rank reads it; empty for nothing."""
        if file in found.in_storage:
            try:
                found.fetch(file)
            except (DamagedFileError, FileNotFoundError) as error:
                return f"cannot be used ({error})"
            if not self.spool.storage.store.is_local:
                return ""  # checked as it arrived
        return damage_of(found.paths[file], digest)

    def _ranks_here(self, shelves: list[Shelf]) -> list[int]:
        return [r for r, shelf in enumerate(shelves) if shelf.node == shelves[self.rank].node]

    def _tell_once(self, text: str) -> None:
        """On rank 0, for all, however often it is found."""
        if self.rank == 0 and text not in self._told:
            self._told.add(text)
            self.spool.tell(text)
