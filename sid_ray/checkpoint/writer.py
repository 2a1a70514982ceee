"""Checkpoints on their way: local disk first, then the run's storage, while training goes on.

    training     save()      step   step   poll()     step   poll()            step
    writer             [ files to local disk ]
    uploader                                [ files to storage ][ manifest ]

Each rank copies its share of the state to host memory and trains on. A thread writes it to the
node's local disk, another uploads it. In ``poll``, once a step and on all ranks together, the ranks
learn that all have written (then the checkpoint is whole on local disks) and that all have uploaded
(then rank 0 adds the manifest and the checkpoint is whole in storage). One upload at a time: where
storage is slower than the interval, or is cut for a while, only the newest checkpoint is uploaded
next, and training never waits for it.

A failed write (a full disk) loses that checkpoint and nothing else: it is named, its files are
removed, training goes on, and the one before it stays.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from sid_ray.checkpoint.manifest import MANIFEST, Manifest, joined_manifest
from sid_ray.checkpoint.remote import RunStorage, Tell, remove
from sid_ray.checkpoint.snapshot import Part, Snapshot, write_snapshot
from sid_ray.distributed.fragments import gathered, world
from sid_ray.storage.durable import replace_file
from sid_ray.storage.errors import pause_s, retrying
from sid_ray.storage.fence import OPEN, Fence
from sid_ray.storage.store import Store

PENDING, DONE, FAILED = 0, 1, 2
POLL_S = 0.05


def state_of(job: Future) -> int:
    if not job.done():
        return PENDING
    return FAILED if job.exception() else DONE


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Adds the manifest to a checkpoint on local disk, in one move. Raises OSError."""
    replace_file(folder / MANIFEST, manifest.to_json())


@dataclass
class Writing:
    """A checkpoint on its way to local disk."""

    name: str
    snapshot: Snapshot
    part: Future[Part]


@dataclass
class Uploading:
    """A checkpoint on its way to storage: its files on all ranks, then its manifest on rank 0."""

    name: str
    manifest: Manifest
    done: Future[None]
    sealing: bool = False


class Spool:
    """The checkpoints of one rank between training and storage. Every method is a collective.

    Args:
        local: folder on this node's disk, which ranks of one node share.
        storage: the run's folder, which all nodes see: a disk, or S3.
        keep: newest checkpoints to keep in storage.
        tell: takes a line for a person, on any rank and from any thread.
        on_stored: called on rank 0 with images_seen once a checkpoint is whole in storage.
        group: process group of the collectives: gloo, so that a GPU never waits for them.
        fence: what of the run counts under this driver's lease.
    """

    def __init__(
        self,
        local: Path,
        storage: Store | Path,
        keep: int,
        tell: Tell,
        on_stored: Callable[[int], None] = lambda images_seen: None,
        group: Any = None,
        fence: Fence = OPEN,
    ):
        self.local, self.storage, self._keep = local, RunStorage(storage, fence), keep
        self.fence = fence
        self.tell, self._on_stored, self.group = tell, on_stored, group
        self.saved = -1  # images_seen of the newest checkpoint on its way or there
        self.stored = -1  # images_seen of the newest checkpoint that this spool brought to storage
        self._writer = ThreadPoolExecutor(1, "checkpoint-writer")
        self._uploader = ThreadPoolExecutor(1, "checkpoint-uploader")
        self._closing = threading.Event()
        self._away_since = 0.0  # since when storage fails; 0 for not
        self._writing: Writing | None = None
        self._waiting: tuple[str, Manifest, list[str]] | None = None
        self._uploading: Uploading | None = None
        self.local.mkdir(parents=True, exist_ok=True)

    def save(self, snapshot: Snapshot, name: str) -> None:
        """Starts to write a checkpoint; waits only for the one before it to be on local disk."""
        self.settle()
        part = self._writer.submit(write_snapshot, self.local / name, snapshot)
        self._writing = Writing(name, snapshot, part)
        self.saved = snapshot.images_seen

    def poll(self, wish: int = 0) -> int:
        """Moves things on where all ranks are ready; returns the largest ``wish`` of all ranks."""
        writing = state_of(self._writing.part) if self._writing else PENDING
        uploading = state_of(self._uploading.done) if self._uploading else PENDING
        (writing_least, writing_most), (least, most), wish = self._together(
            writing, uploading, wish
        )
        if self._writing is not None and writing_least >= DONE:
            self._settle(self._writing, whole=writing_most == DONE)
        if self._uploading is not None and least >= DONE:
            self._seal(self._uploading, whole=most == DONE)
        return wish

    def flush(self, wish: Callable[[], int] = lambda: 0) -> int:
        """Returns 0 when everything that was saved is in storage, however long that takes.

        Where any rank has a ``wish`` meanwhile, that is returned once all is on local disks.
        """
        while True:
            found = self.poll(wish())
            if self._writing is None and self._uploading is None:
                return 0
            if self._writing is None and found:
                return found
            time.sleep(POLL_S)

    def settle(self) -> None:
        """Returns when what was saved is on local disks, or could not be written."""
        while self._writing is not None:
            self.poll()
            time.sleep(POLL_S if self._writing is not None else 0)

    def upload(self, name: str, manifest: Manifest, files: list[str]) -> None:
        """Uploads these of the checkpoint's files from this rank, after what is on its way."""
        self._waiting = name, manifest, files
        if self._uploading is None:
            self._start_upload()

    def close(self) -> None:
        """Ends the threads; what is not in storage yet stays on local disk."""
        self._closing.set()
        self._writer.shutdown(wait=False, cancel_futures=True)
        self._uploader.shutdown(wait=False, cancel_futures=True)

    def _together(
        self, writing: int, uploading: int, wish: int
    ) -> tuple[tuple[int, int], tuple[int, int], int]:
        """(least, most) of all ranks' states of writing and of uploading, and the largest wish."""
        values = torch.tensor([-writing, writing, -uploading, uploading, wish])
        if world()[1] > 1:
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, group=self.group)
        low, high, least, most, wish = values.tolist()
        return (-low, high), (-least, most), wish

    def _settle(self, writing: Writing, whole: bool) -> None:
        """All ranks have ended their writing: the checkpoint is whole on local disks, or gone."""
        self._writing = None
        if not whole:
            self.saved = -1
            error = writing.part.exception()
            if error is not None:
                seen = writing.snapshot.images_seen
                self.tell(
                    f"checkpoint at {seen:,} images was not written ({error}): "
                    "training goes on, and the one before it stays"
                )
            shutil.rmtree(self.local / writing.name, ignore_errors=True)
            return
        part = writing.part.result()
        manifest = joined_manifest(writing.snapshot, gathered(part, self.group))
        with contextlib.suppress(OSError):  # a full disk: what counts is storage
            write_manifest(self.local / writing.name, manifest)
        self.upload(writing.name, manifest, list(part.files))

    def _start_upload(self) -> None:
        assert self._waiting is not None
        name, manifest, files = self._waiting
        self._waiting = None
        jobs = [partial(self.storage.put, self.local / name / file, name, file) for file in files]
        self._uploading = Uploading(name, manifest, self._uploader.submit(self._put, name, jobs))

    def _seal(self, uploading: Uploading, whole: bool) -> None:
        """All files are in storage: rank 0 adds the manifest; then the next upload may start."""
        name, manifest = uploading.name, uploading.manifest
        if whole and not uploading.sealing:
            text = manifest.to_json()
            jobs = [partial(self.storage.put_text, text, name, MANIFEST)] * (world()[0] == 0)
            done = self._uploader.submit(self._put, name, jobs)
            self._uploading = Uploading(name, manifest, done, sealing=True)
            return
        self._uploading = None
        if whole:
            self.stored = manifest.images_seen
            self.forget(before=name)
            if world()[0] == 0:
                self._uploader.submit(self.storage.keep, self._keep)
                self._on_stored(manifest.images_seen)
        else:
            self.saved = -1
        if uploading.done.exception():
            self.tell(f"{name} was not uploaded: {uploading.done.exception()}")
        if self._waiting is not None:
            self._start_upload()

    def _put(self, name: str, jobs: Sequence[Callable[[], None]]) -> None:
        """Does each upload; tries again for as long as storage fails.

        Raises LocalFileLostError where what is to be uploaded is gone.
        """
        for job in jobs:
            tries = 0
            while not self._closing.is_set():
                try:
                    job()
                    break
                except OSError as error:
                    if self.goes_away():
                        self.tell(
                            f"storage cannot be written ({self.storage.why(error)}): training goes "
                            f"on, {name} is kept on local disk and uploaded when storage is back"
                        )
                    self._closing.wait(pause_s(tries))
                    tries += 1
        if jobs and not self._closing.is_set():
            self.is_back(f": {name} is uploaded")

    def goes_away(self) -> bool:
        """Notes that storage fails; True when that is new, and to be told."""
        first, self._away_since = not self._away_since, self._away_since or time.monotonic()
        return first

    def is_back(self, what: str = "") -> None:
        """Notes that storage does not fail; tells it where it did."""
        away_since, self._away_since = self._away_since, 0.0
        if away_since:
            away_s = time.monotonic() - away_since
            self.tell(f"storage is back after {away_s:.0f} s{what}")

    def forget_after(self, name: str) -> None:
        """Removes newer checkpoints from local disks and storage."""
        remove(Store.at(self.local), lambda found: found > name and self.fence.may_remove(found))
        if world()[0] == 0:
            retrying(lambda: self.storage.remove(lambda found: found > name), self.tell)
        gathered(None, self.group)  # nobody writes anew before everybody has removed
        self.saved = self.stored = -1

    def forget(self, before: str = "~") -> None:
        """Removes older checkpoints, or all, from local disk. Ranks of one node may do so at once.

        No collective.
        """
        remove(Store.at(self.local), lambda name: name < before and self.fence.may_remove(name))
