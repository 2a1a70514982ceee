"""Files of https:// and s3:// on this machine's disk, fetched once.

    CACHE/weights/KEY/NAME           the file, whole: moved here when its last byte is checked
    CACHE/weights/KEY/NAME.json      where it came from, its version there, size and sha256
    CACHE/weights/KEY/NAME.part      what has arrived of it; .part.json says of which version
    CACHE/weights/KEY/NAME.lock      held by the one process that fetches

A broken download goes on where it broke, in the same call and in a later one. What comes from the
Hugging Face hub lies in that library's cache instead (hub.py).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sid_ray.errors import UserError
from sid_ray.storage.cache import cache_folder, locked
from sid_ray.storage.errors import StoreError, UnreachableStoreError
from sid_ray.weights.address import Source, check_sha256
from sid_ray.weights.remotes import Remote

ATTEMPTS, PAUSE_S = 4, 0.2
SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """The sidecar of a cached file; ``etag`` is the version of ``Remote``."""

    source: str
    etag: str | None
    size: int
    sha256: str


def entry(source: Source) -> Path:
    """Where a remote file or prefix lies in the cache. The key holds nothing secret."""
    key = hashlib.sha256(source.location.encode()).hexdigest()[:20]
    return cache_folder() / "weights" / key / (Path(urlsplit(source.location).path).name or "file")


def fetch_file(path: Path, look: Callable[[], Remote], source: Source, label: str) -> Path:
    """A remote file at ``path``: fetched once however many processes ask, and again where it has
    changed. Raises UserError.
    """
    with failures_named(label), locked(path):
        record = read_record(path)
        if record is not None and source.sha256 == record.sha256:
            return path  # a file of that checksum cannot change
        try:
            return Download(path, look, source, label, record).run()
        except UnreachableStoreError as error:
            if record is None:
                raise
            print(f"{error.strerror or error}; the copy is used", file=sys.stderr)
            return checked(path, record, source, label)


def checked(path: Path, record: Record, source: Source, label: str) -> Path:
    """A cached file, if it is the one asked for. Raises UserError."""
    if source.sha256 is not None:
        check_sha256(record.sha256, source.sha256, label)
    return path


@contextlib.contextmanager
def failures_named(label: str) -> Iterator[None]:
    """What went wrong with a source as one line of UserError."""
    try:
        yield
    except UnreachableStoreError as error:
        raise UserError(
            f"{error}; what has arrived is kept and the same command goes on from there"
        ) from None
    except StoreError as error:
        raise UserError(error.strerror or str(error)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(label, "more") from None
        raise UserError(
            f"{label} cannot be kept in {cache_folder()}: {error.strerror or error}; "
            "set SID_RAY_CACHE to a folder that can be written"
        ) from None


def no_space(label: str, needed: str) -> UserError:
    return UserError(
        f"no space left for {label} in {cache_folder()} ({needed} needed): "
        "free some or set SID_RAY_CACHE to another disk"
    )


def read_record(path: Path) -> Record | None:
    """The sidecar of a file that is there and has its size; None for anything else."""
    try:
        record = Record(**json.loads(path.with_name(path.name + ".json").read_text()))
        return record if path.stat().st_size == record.size else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write_json(path: Path, values: object) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(values, indent=2) + "\n")
    new.replace(path)


class Download:
    """One file on its way into the cache; the caller holds its lock."""

    def __init__(
        self,
        path: Path,
        look: Callable[[], Remote],
        source: Source,
        label: str,
        record: Record | None,
    ):
        self.path, self.look, self.source, self.label = path, look, source, label
        self.record = record
        self.part = path.with_name(path.name + ".part")
        self.version = path.with_name(path.name + ".part.json")

    def run(self) -> Path:
        """Raises StoreError, OSError, UserError."""
        failures = 0
        while True:
            before = self.arrived()
            try:
                return self.attempt()
            except UnreachableStoreError:
                failures = 1 if self.arrived() > before else failures + 1
                if failures >= ATTEMPTS or (self.record and not self.arrived()):
                    raise
                time.sleep(PAUSE_S * 2**failures)

    def arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def attempt(self) -> Path:
        """Asks what the file is now, and fetches what is missing of it.

        Raises UnreachableStoreError where the connection breaks.
        """
        remote = self.look()
        if self.record is not None and remote.version == self.record.etag is not None:
            return checked(self.path, self.record, self.source, self.label)
        start = self.arrived() if remote.version == self.part_version() is not None else 0
        if start > (remote.size or 0) or not remote.has_parts():
            start = 0
        needed = (remote.size or 0) - start + SPARE_BYTES
        if needed > shutil.disk_usage(self.part.parent).free:
            raise no_space(self.label, f"{needed / 2**30:.2f} GiB")
        write_json(self.version, {"etag": remote.version})
        size = self.receive(remote, start)
        if remote.size is not None and size != remote.size:
            raise UnreachableStoreError(
                f"{self.label} broke off at {size} of {remote.size} bytes: check the network"
            )
        if self.source.sha256 is None and self.look().version != remote.version:
            raise UnreachableStoreError(f"{self.label} changed while it was fetched: try again")
        return self.keep(remote, size)

    def part_version(self) -> str | None:
        try:
            version = json.loads(self.version.read_text())["etag"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return version if isinstance(version, str) else None

    def receive(self, remote: Remote, start: int) -> int:
        """Writes what arrives, of a file that tells its size no more than that; the part's size."""
        with self.part.open("ab" if start else "wb") as file, progress(self.label) as show:
            show(start, remote.size)
            for chunk in remote.chunks(start):
                file.write(chunk)
                show(file.tell(), remote.size)
                if remote.size is not None and file.tell() > remote.size:
                    break
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def keep(self, remote: Remote, size: int) -> Path:
        """Moves the whole file to its place. Raises UserError for another one than asked for."""
        with self.part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            if self.source.sha256 is not None:
                check_sha256(found, self.source.sha256, self.label)
        except UserError:
            self.part.unlink()
            raise
        sidecar = self.path.with_name(self.path.name + ".json")
        sidecar.unlink(missing_ok=True)  # never a record beside another file
        self.part.replace(self.path)
        write_json(sidecar, asdict(Record(self.label, remote.version, size, found)))
        self.version.unlink(missing_ok=True)
        return self.path


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label.rpartition("/")[2] or label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
