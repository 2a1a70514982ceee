"""Files of https:// and s3:// on this machine's disk, fetched once.

    CACHE/weights/KEY/NAME           the file, whole: moved here when its last byte is checked
    CACHE/weights/KEY/NAME.json      where it came from, its version there, size and sha256
    CACHE/weights/KEY/NAME.V.part    what has arrived of version V
    CACHE/weights/KEY/NAME.lock      held by the one process that fetches

A broken download goes on where it broke, in the same call and in a later one. What comes from the
Hugging Face hub lies in that library's cache instead (hub.py).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sid_ray.errors import UserError
from sid_ray.storage.cache import cache_folder, file_sha256
from sid_ray.storage.durable import locked, replace_file
from sid_ray.storage.errors import StoreError, UnreachableStoreError
from sid_ray.weights.address import WeightSource, check_sha256
from sid_ray.weights.remotes import Remote

ATTEMPTS, PAUSE_S = 4, 0.2
NOTE_S = 2.0  # until a person is told that another process has the lock
SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class CacheRecord:
    """The sidecar of a cached file; ``etag`` is the version of ``Remote``."""

    source: str
    etag: str | None
    size: int
    sha256: str


def entry(source: WeightSource) -> Path:
    """Where a remote file or prefix lies in the cache. The key holds nothing secret."""
    key = hashlib.sha256(source.location.encode()).hexdigest()[:20]
    return cache_folder() / "weights" / key / (Path(urlsplit(source.location).path).name or "file")


def fetch_file(path: Path, look: Callable[[], Remote], source: WeightSource, label: str) -> Path:
    """A remote file at ``path``: fetched once however many processes ask, and again where it has
    changed. Raises UserError.
    """
    with failures_named(label), only_fetcher(path):
        record = read_cache_record(path)
        if record is not None and source.sha256 == record.sha256:
            return path  # a file of that checksum cannot change
        failures = 0
        while True:
            before = arrived(path)
            try:
                return fetch_once(path, look, source, label, record)
            except UnreachableStoreError as error:
                failures = 1 if arrived(path) > before else failures + 1
                if failures >= ATTEMPTS or (record is not None and not arrived(path)):
                    if record is None:
                        raise
                    print(f"{error.strerror or error}; the copy is used", file=sys.stderr)
                    return checked_file(path, record, source, label)
                time.sleep(PAUSE_S * 2**failures)


@contextlib.contextmanager
def only_fetcher(path: Path) -> Iterator[None]:
    """Holds the file's lock; whoever waits for it is told."""
    text = f"waiting for the process that fetches {path.name}"
    note = threading.Timer(NOTE_S, print, [text], {"file": sys.stderr})
    note.daemon = True
    note.start()
    try:
        with locked(path):
            note.cancel()
            yield
    finally:
        note.cancel()


def arrived(path: Path) -> int:
    """Bytes of a file that have come, of whichever version."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"))


def checked_file(path: Path, record: CacheRecord, source: WeightSource, label: str) -> Path:
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


def read_cache_record(path: Path) -> CacheRecord | None:
    """The sidecar of a file that is there and has its size; None for anything else."""
    try:
        record = CacheRecord(**json.loads(path.with_name(path.name + ".json").read_text()))
        return record if path.stat().st_size == record.size else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def fetch_once(
    path: Path,
    look: Callable[[], Remote],
    source: WeightSource,
    label: str,
    record: CacheRecord | None,
) -> Path:
    """Asks what the file is now, and fetches what is missing of it; the caller holds its lock.

    Raises UnreachableStoreError where the connection breaks, StoreError, OSError, UserError.
    """
    remote = look()
    if record is not None and remote.version == record.etag is not None:
        return checked_file(path, record, source, label)
    version = hashlib.sha256(str(remote.version).encode()).hexdigest()[:12]
    part = path.with_name(f"{path.name}.{version}.part")
    start = part.stat().st_size if part.is_file() and remote.version else 0
    if start > (remote.size or 0) or (start and not remote.has_parts()):
        start = 0
    needed = (remote.size or 0) - start + SPARE_BYTES
    if needed > shutil.disk_usage(path.parent).free:
        raise no_space(label, f"{needed / 2**30:.2f} GiB")
    size = receive(remote, part, start, label)
    if remote.size is not None and size != remote.size:
        raise UnreachableStoreError(
            f"{label} broke off at {size} of {remote.size} bytes: check the network"
        )
    if source.sha256 is None and look().version != remote.version:
        raise UnreachableStoreError(f"{label} changed while it was fetched: try again")
    new = CacheRecord(label, remote.version, size, file_sha256(part))
    try:
        checked_file(path, new, source, label)
    except UserError:
        part.unlink()
        raise
    sidecar = path.with_name(path.name + ".json")
    sidecar.unlink(missing_ok=True)  # never a record beside another file
    part.replace(path)
    replace_file(sidecar, json.dumps(asdict(new), indent=2) + "\n")
    for old in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        old.unlink()
    return path


def receive(remote: Remote, part: Path, start: int, label: str) -> int:
    """Writes what arrives, of a file that tells its size no more than that; the part's size."""
    with part.open("ab" if start else "wb") as file, progress(label) as show:
        show(start, remote.size)
        for chunk in remote.chunks(start):
            file.write(chunk)
            show(file.tell(), remote.size)
            if remote.size is not None and file.tell() > remote.size:
                break
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


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
