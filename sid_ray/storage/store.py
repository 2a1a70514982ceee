"""Files by name in a folder that may lie anywhere: on a disk that all nodes see, or in S3.

    /data/cifar10, runs/x      a path
    s3://bucket/prefix         an S3-compatible server (s3.py)

The kinds of places are a table (schemes.py), to which another one is added by one entry.

A file appears whole or not at all: on a disk it is moved into place, in S3 an object exists when
its upload is complete. What fails raises a StoreError, an OSError whose text is one line for the
person who reads it; UnreachableStoreError is the one that waiting may mend.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError
from sid_ray.storage.durable import PART, link_or_copy, moved_into_place
from sid_ray.storage.errors import NotExclusiveError, StoreError
from sid_ray.storage.scheme import Change, Scheme
from sid_ray.storage.schemes import scheme_of, stores

CHUNK = 8 << 20
STREAMS = 8  # ranges of a large file that are fetched at once


@contextmanager
def naming_errors(url: str, name: str = "") -> Iterator[None]:
    """Errors of a store that is no disk as StoreErrors that say which file, what is wrong and what
    to check."""
    scheme = scheme_of(url)
    if scheme.is_path:
        yield
        return
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise scheme.error(f"{url}/{name}" if name else url, error) from None


@dataclass(frozen=True)
class Store:
    """A folder of files on one file system.

    Args:
        url: an absolute path, or s3://bucket/prefix; without a slash at its end.

    Names are relative, with / between parts. Every method raises StoreError (on a disk: OSError).
    """

    url: str

    @classmethod
    def at(cls, place: str | Path) -> Store:
        """A store from what a person wrote. Raises UserError for another kind of address."""
        text = str(place)
        try:
            scheme = scheme_of(text)
        except UserError:
            raise UserError(f"{text}: expected {stores()}") from None
        return cls(scheme.address(text))

    def __truediv__(self, name: str) -> Store:
        return Store(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def scheme(self) -> Scheme:
        return scheme_of(self.url)

    @property
    def is_local(self) -> bool:
        return self.scheme.is_path

    @property
    def folder(self) -> Path:
        """Its path, where it is on a disk."""
        assert self.is_local, self.url
        return Path(self.url)

    @cached_property
    def filesystem(self) -> Any:
        """The pyarrow file system that it lies on."""
        with naming_errors(self.url):
            return self.scheme.filesystem(self.url)

    def path(self, name: str = "") -> str:
        """Where a file is on ``filesystem``."""
        root = self.scheme.path(self.url)
        return f"{root}/{name}" if name else root

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}  # each process opens its own connections

    def __setstate__(self, state: dict[str, str]) -> None:
        object.__setattr__(self, "url", state["url"])

    def create(self) -> None:
        """Makes the folder on a disk. Checks the bucket of S3, which is never created here."""
        if self.is_local:
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        with naming_errors(self.url):
            self.scheme.create(self.url, self.filesystem)

    def look(self) -> None:
        """Raises OSError where there is no folder to look into, or no bucket."""
        if self.is_local:
            next(self.folder.iterdir(), None)
            return
        with naming_errors(self.url):
            self.scheme.look(self.url, self.filesystem)

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""
        from pyarrow import fs

        with naming_errors(self.url, name):
            info = self.filesystem.get_file_info(self.path(name))
        return info.size if info.type == fs.FileType.File else None

    def files(self) -> dict[str, int]:
        """Every file below, by its name, with its size; none where the folder is missing."""
        from pyarrow import fs

        choice = fs.FileSelector(self.path(), recursive=True, allow_not_found=True)
        with naming_errors(self.url):
            found = self.filesystem.get_file_info(choice)
        cut = len(self.path()) + 1
        files = (info for info in found if info.type == fs.FileType.File)
        return {i.path[cut:]: i.size for i in files if not i.path.endswith(PART)}

    def folders(self) -> list[str]:
        """Names of the folders directly below, in order."""
        from pyarrow import fs

        choice = fs.FileSelector(self.path(), allow_not_found=True)
        with naming_errors(self.url):
            found = self.filesystem.get_file_info(choice)
        return sorted(i.base_name for i in found if i.type == fs.FileType.Directory)

    def times(self) -> dict[str, float]:
        """Files directly below, with when each was written: seconds since the epoch, by the clock
        of the store."""
        from pyarrow import fs

        choice = fs.FileSelector(self.path(), allow_not_found=True)
        with naming_errors(self.url):
            found = self.filesystem.get_file_info(choice)
        files = (info for info in found if info.type == fs.FileType.File)
        return {i.base_name: (i.mtime_ns or 0) / 1e9 for i in files}

    def open(self, name: str) -> Any:
        """A file to read from anywhere in (pyarrow NativeFile)."""
        with naming_errors(self.url, name):
            return self.filesystem.open_input_file(self.path(name))

    def read(self, name: str) -> bytes:
        with naming_errors(self.url, name), self.open(name) as file:
            return file.read()

    def sha256(self, name: str) -> str:
        with naming_errors(self.url, name), self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read_text(self, name: str) -> str:
        return self.read(name).decode("utf-8")

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """A stream whose file appears when the block ends; nothing of it when it raises."""
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with moved_into_place(target) as temporary, temporary.open("wb") as file:
                yield file
            return
        place, folders = self.path(name), self.scheme.has_folders
        written = f"{place}.{uuid.uuid4().hex[:6]}{PART}" if folders else place
        with naming_errors(self.url, name):
            if folders:
                self.filesystem.create_dir(place.rpartition("/")[0], recursive=True)
            stream = self.filesystem.open_output_stream(written)
        try:
            yield stream
        except BaseException:
            # pyarrow 25 cannot abort an upload: a stream that is dropped completes what it has.
            with suppress(OSError):
                stream.close()
                self.filesystem.delete_file(written)
            raise
        with naming_errors(self.url, name):
            stream.close()
            if folders:
                self.filesystem.move(written, place)

    def write(self, name: str, data: bytes | str) -> None:
        """A whole file in one move."""
        with self.writing(name) as file, naming_errors(self.url, name):
            file.write(data.encode() if isinstance(data, str) else data)

    def write_new(self, name: str, text: str) -> bool:
        """Writes a file that must not be there: of many who try at once, one succeeds.

        Returns False where it is there. Raises NotExclusiveError where the store cannot tell.
        """
        with naming_errors(self.url, name):
            return self.scheme.write_new(f"{self.url}/{name}", text.encode())

    def change(self, name: str, how: Change) -> None:
        """Replaces a file by what ``how`` makes of its bytes, none where there is no file.

        Of many who do so at once, each finds what the others have made: ``how`` may be asked again.
        Where the store cannot tell who was sooner, the last one wins.
        """
        try:
            with naming_errors(self.url, name):
                return self.scheme.change(f"{self.url}/{name}", how)
        except NotExclusiveError:
            data = self.read(name) if self.size(name) is not None else b""
            if (new := how(data)) != data:
                self.write(name, new)

    def put(self, source: Path, name: str) -> None:
        """Stores a file in one move; on the same disk without a copy."""
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)
            return
        with source.open("rb") as file, self.writing(name) as stream, naming_errors(self.url, name):
            while chunk := file.read(CHUNK):
                stream.write(chunk)

    def fetch(self, name: str, target: Path) -> Path:
        """A copy of a file at a path, in one move; ``target``."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            moved_into_place(target, sync=False) as temporary,
            temporary.open("wb") as file,
            self.open(name) as stream,
            naming_errors(self.url, name),
        ):
            size = stream.size()

            def copy(start: int) -> None:
                data = stream.read_at(min(CHUNK, size - start), start)
                os.pwrite(file.fileno(), data, start)

            with ThreadPoolExecutor(STREAMS) as pool:
                list(pool.map(copy, range(0, size, CHUNK)))
        return target

    def remove(self, name: str) -> None:
        """Removes a file; nothing where there is none."""
        with suppress(FileNotFoundError), naming_errors(self.url, name):
            self.filesystem.delete_file(self.path(name))

    def remove_tree(self, name: str) -> None:
        """Removes a folder with all that is in it; nothing where there is none."""
        if self.is_local:
            shutil.rmtree(self.path(name), ignore_errors=True)
            return
        for file in (self / name).files():
            self.remove(f"{name}/{file}")
        with suppress(OSError):  # a marker of the folder, where a library has made one
            self.filesystem.delete_dir(self.path(name))


def probe(store: Store) -> float:
    """Writes, reads back, replaces and removes a small file; seconds that it took.

    Raises StoreError, on a disk OSError, UserError where another text came back.
    """
    began, name = time.monotonic(), f".probe-{uuid.uuid4().hex[:8]}"
    store.create()
    try:
        for text in ("written", "replaced"):
            store.write(name, text)
            found = store.read_text(name)
            if found != text:
                raise UserError(f"{store}: wrote {text!r} and read {found!r}: not a store to trust")
    finally:
        store.remove(name)
    return time.monotonic() - began
