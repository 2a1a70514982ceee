"""Files on a disk that outlive a killed process and a machine that loses power, beside others who
read and write them: the one lock, the one atomic replace, the one reader and writer of JSON lines.

    with locked(path):                    one process at a time; the lock goes with its process
    with moved_into_place(path) as new:   a reader finds the old file or the new one, never a part
    append_line(path, value)              a line of JSON behind the last whole one
    values_in(data)                        the values of the whole lines

A line is whole when its newline is there. What stands behind the last newline was cut by a crash:
readers leave it out, and the next writer puts its own line in its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PART = ".part"  # how a file is called until it is whole
LOCK = ".lock"  # how the file is called that stands for the lock of another
AGAIN_S = 0.05  # between two looks at a lock that another process has
FOREVER = float("inf")
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)  # of some network file systems


# The lock -----------------------------------------------------------------------------------------


class HeldError(BlockingIOError):
    """Another process has the lock."""


def lock(file: int, shared: bool = False, patience_s: float = FOREVER) -> None:
    """Takes the lock of an open file for this process; the kernel drops it with the process.

    Raises HeldError where others have it for ``patience_s``, another OSError where the file system
    has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if patience_s == FOREVER:
        fcntl.flock(file, kind)
        return
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                text = f"another process has had it for {patience_s:.0f} s"
                raise HeldError(errno.EWOULDBLOCK, text) from None
            time.sleep(AGAIN_S)


def unlock(file: int) -> None:
    """Gives it back at once: a process that was forked meanwhile has the open file, too."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def locked(path: Path, patience_s: float = FOREVER) -> Iterator[None]:
    """Holds the lock that stands beside a file, which need not be there.

    Raises HeldError where others have it for ``patience_s``, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + LOCK).open("a") as file:
        lock(file.fileno(), patience_s=patience_s)
        try:
            yield
        finally:
            unlock(file.fileno())


# The atomic replace -------------------------------------------------------------------------------


@contextmanager
def moved_into_place(target: Path, sync: bool = True, folder: bool = False) -> Iterator[Path]:
    """A path beside ``target`` to write; moved there when the block ends, removed if it raises.

    A reader finds the old file or the new one, whoever else writes the same.

    Args:
        sync: after a loss of power, too. Without it such a file may be empty: for what is made
            again at little cost, or is checked when it is read.
        folder: the new one is there after a loss of power, once this returns: for what others are
            removed for.
    """
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}{PART}")
    try:
        yield temporary
        if sync or folder:
            sync_path(temporary)
        temporary.replace(target)
        if folder:
            sync_path(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(target: Path, data: bytes | str, sync: bool = True, folder: bool = False) -> None:
    """The same of a file whose content is at hand. Raises OSError."""
    with moved_into_place(target, sync, folder) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def link_or_copy(source: Path, target: Path, sync: bool = True, folder: bool = False) -> None:
    """A file under another name, in one move; on the same disk without a copy."""
    with moved_into_place(target, sync, folder) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # another disk
            shutil.copyfile(source, temporary)


def remove_parts(folder: Path, of: str = "*", older_than_s: float = 0.0) -> None:
    """Removes what processes that were killed while they wrote files ``of`` a pattern left there.

    Others may be writing: theirs are younger than ``older_than_s``.
    """
    for cut in folder.glob(f"{of}.*{PART}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - cut.stat().st_mtime >= older_than_s:
                cut.unlink()


def sync_path(path: Path) -> None:
    """Returns when a file's content, or a folder's names, are on the disk. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        sync_file(file)
    finally:
        os.close(file)


def sync_file(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


# Lines of JSON ------------------------------------------------------------------------------------


def values_in(data: bytes) -> tuple[list[Any], bytes]:
    """The value of each whole line, None for one that is no JSON; and what was cut by a crash."""
    *lines, rest = data.split(b"\n")
    return [value_of_line(line) for line in lines], rest


def value_of_line(text: bytes) -> Any:
    """What JSON says, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def read_values(path: Path) -> list[Any]:
    """The values of a file's whole lines; none where there is no file. Raises OSError."""
    try:
        return values_in(path.read_bytes())[0]
    except FileNotFoundError:
        return []


class LineFile:
    """An open file of JSON lines that no other process writes meanwhile; see ``open_lines``."""

    def __init__(self, file: int):
        self._file = file

    def read(self) -> bytes:
        """All of it. Raises OSError."""
        return os.pread(self._file, os.fstat(self._file).st_size, 0)

    def values(self) -> list[Any]:
        """Of the whole lines. Raises OSError."""
        return values_in(self.read())[0]

    def begin(self, value: Any) -> None:
        """Removes all that there is; ``value`` is the first line then. Raises OSError."""
        os.ftruncate(self._file, 0)
        self.append(value)

    def append(self, *values: Any, sync: bool = False) -> None:
        """Adds lines in the place of what was cut. Where it fails, nothing of them is there.

        Args:
            sync: they are there after a loss of power, once this returns.

        Raises OSError.
        """
        end = self._end()
        os.ftruncate(self._file, end)
        data, offset = b"".join(map(json_line, values)), end
        try:
            while data:
                count = os.pwrite(self._file, data, offset)
                data, offset = data[count:], offset + count
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, end)
            raise
        if sync:
            sync_file(self._file)

    def close(self) -> None:
        """Gives it up; others may write it."""
        unlock(self._file)
        os.close(self._file)

    def _end(self) -> int:
        """Where the last whole line ends."""
        size = end = os.fstat(self._file).st_size
        if not size or os.pread(self._file, 1, size - 1) == b"\n":
            return size
        block = 4096
        while end > 0:
            start = max(0, end - block)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0


def open_lines(path: Path, patience_s: float = FOREVER) -> LineFile:
    """A file of JSON lines, made where there is none, for this process alone until it is closed.

    Another process may replace it while this one waits: the new one is taken then. Raises
    HeldError, OSError, also where the file system has no locks.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock(file, patience_s=patience_s)
            if is_at(file, path):
                return LineFile(file)
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def only_writer(path: Path, patience_s: float = FOREVER) -> Iterator[LineFile]:
    """The lines of a file, for one process at a time: of those that use this function, no two are
    in the block at once, also where one of them replaces the file. Raises HeldError, OSError.
    """
    with contextlib.closing(open_lines(path, patience_s)) as file:
        yield file


def append_line(path: Path, value: Any, sync: bool = True) -> None:
    """Adds a line to a file; after a loss of power it is there, too. Raises OSError."""
    with only_writer(path) as file:
        file.append(value, sync=sync)
