"""Fetches remote weights once.

    CACHE/weights/KEY/NAME           the file, whole: moved here when its last byte is checked
    CACHE/weights/KEY/NAME.json      where it came from, its etag, size and sha256
    CACHE/weights/KEY/NAME.part      what has arrived of it; .part.json says of which version
    CACHE/weights/KEY/NAME.lock      held by the one process that fetches

CACHE is SID_RAY_CACHE, else sid_ray in XDG_CACHE_HOME, else ~/.cache/sid_ray. A broken download
goes on where it broke, in the same call and in a later one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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
from sid_ray.storage.cache import cache_folder
from sid_ray.weights.address import Source, check_sha256
from sid_ray.weights.remotes import DeniedError, MissingError, Opened, Remote, UnreachableError

ATTEMPTS, PAUSE_S = 4, 0.2
SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """The sidecar of a cached file."""

    source: str
    etag: str | None
    size: int
    sha256: str


def entry(source: Source) -> Path:
    """Where a remote file or prefix lies in the cache. The key holds nothing secret."""
    key = hashlib.sha256(source.location.encode()).hexdigest()[:20]
    return cache_folder() / "weights" / key / (Path(urlsplit(source.location).path).name or "file")


def fetch_file(remote: Remote, source: Source, label: str) -> Path:
    """Fetches one file into its place in the cache. Raises UserError."""
    return fetch_to(entry(source), remote, source, label)


def fetch_to(path: Path, remote: Remote, source: Source, label: str) -> Path:
    """Fetches one file to ``path``, once however many processes ask. Raises UserError."""
    with failures_named(label), only_fetcher(path):
        record = read_record(path)
        if record is not None and source.sha256 == record.sha256:
            return checked(path, record, source, label)  # a file of that name cannot change
        try:
            return Download(path, remote, source, label, record).run()
        except UnreachableError as error:
            if record is None:
                raise
            print(f"{label} was not asked for news ({error}); the copy is used", file=sys.stderr)
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
    except MissingError:
        raise UserError(f"nothing at {label}: not found; check the name") from None
    except DeniedError as error:
        raise UserError(
            f"no access to {label} ({error}): check HF_TOKEN, the AWS variables or the link"
        ) from None
    except UnreachableError as error:
        raise UserError(
            f"{label} cannot be reached ({error}): check the network; "
            "what has arrived is kept and the same command goes on from there"
        ) from None
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


@contextlib.contextmanager
def only_fetcher(path: Path) -> Iterator[None]:
    """Holds the file's lock; the kernel drops it with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that fetches {path.name}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
        self, path: Path, remote: Remote, source: Source, label: str, record: Record | None
    ):
        self.path, self.remote, self.source, self.label = path, remote, source, label
        self.record = record
        self.part = path.with_name(path.name + ".part")
        self.version = path.with_name(path.name + ".part.json")
        self.digest = hashlib.sha256()

    def run(self) -> Path:
        """Raises MissingError, DeniedError, UnreachableError, OSError, UserError."""
        failures = 0
        while True:
            before = self.arrived()
            try:
                return self.attempt()
            except UnreachableError:
                failures = 1 if self.arrived() > before else failures + 1
                if failures >= ATTEMPTS or (self.record and not self.arrived()):
                    raise
                time.sleep(PAUSE_S * 2**failures)

    def arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def attempt(self) -> Path:
        """One connection. Raises UnreachableError where it breaks."""
        etag = self.part_etag()
        known = self.record.etag if self.record else None
        start = self.arrived() if etag else 0
        opened = self.remote.open(start, etag, None if start else known)
        if opened.unchanged and self.record is not None:
            return checked(self.path, self.record, self.source, self.label)
        self.check_space(opened)
        write_json(self.version, {"etag": opened.etag})
        size = self.receive(opened)
        if opened.size is not None and size != opened.size:
            raise UnreachableError(f"it broke off at {size} of {opened.size} bytes")
        return self.keep(opened, size)

    def part_etag(self) -> str | None:
        try:
            etag = json.loads(self.version.read_text())["etag"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return etag if isinstance(etag, str) else None

    def check_space(self, opened: Opened) -> None:
        needed = (opened.size or 0) - opened.start + SPARE_BYTES
        if needed > shutil.disk_usage(self.part.parent).free:
            raise no_space(self.label, f"{needed / 2**30:.2f} GiB")

    def receive(self, opened: Opened) -> int:
        """Writes what arrives; returns the size of the part. The checksum runs along."""
        self.digest = hashlib.sha256()
        if opened.start:
            with self.part.open("rb") as file:
                self.digest = hashlib.file_digest(file, "sha256")
        with self.part.open("ab" if opened.start else "wb") as file, progress(self.label) as show:
            show(opened.start, opened.size)
            for chunk in opened.chunks:
                file.write(chunk)
                self.digest.update(chunk)
                show(file.tell(), opened.size)
                if opened.size is not None and file.tell() > opened.size:
                    break
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def keep(self, opened: Opened, size: int) -> Path:
        """Moves the whole file to its place. Raises UserError for another one than asked for."""
        found = self.digest.hexdigest()
        try:
            if self.source.sha256 is not None:
                check_sha256(found, self.source.sha256, self.label)
        except UserError:
            self.part.unlink()
            raise
        sidecar = self.path.with_name(self.path.name + ".json")
        sidecar.unlink(missing_ok=True)  # never a record beside another file
        self.part.replace(self.path)
        write_json(sidecar, asdict(Record(self.label, opened.etag, size, found)))
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
