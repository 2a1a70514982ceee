"""Places that a person names: whether they can be written, and an OSError in a person's words."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from sid_ray.errors import UserError

SQLITE = "sqlite:///"
TRIED = bytes(4096)  # a file system that is full takes an empty file
HINTS = {
    errno.ENOSPC: "free some, or name another disk",
    errno.EDQUOT: "free some, or name another disk",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "name a place that can be written, or change its permissions",
    errno.EPERM: "name a place that can be written, or change its permissions",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit: ulimit -n 8192",
    errno.ENFILE: "the whole machine has too many open files",
}


def in_words(error: OSError) -> str:
    """An OSError as one line: where, what, and what to do where that is known."""
    what = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        what = "is a file where a folder is needed, or has one above it; name another place"
    where = f"{error.filename}: " if error.filename and str(error.filename) not in what else ""
    hint = HINTS.get(error.errno or 0, "")
    return one_line(f"{where}{what}{f'; {hint}' if hint else ''}")


def one_line(text: str) -> str:
    """With what would break a line, or a terminal, spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def expanded(place: str | Path) -> Path:
    """A path whose ~ is the home it names. Raises UserError where there is none."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        raise UserError(f"{place}: no such home; write the path out, or set HOME") from None


def check_folder(folder: Path, what: str) -> None:
    """Raises UserError, in one line that begins with ``what``, where a folder cannot be made or
    written. Nothing of the trial is left.
    """
    try:
        try_folder(folder)
    except (OSError, ValueError) as error:  # ValueError: a NUL
        told = in_words(error) if isinstance(error, OSError) else str(error)
        raise UserError(one_line(f"{what} {folder} cannot be written: {told}")) from None


def check_file(file: Path, what: str) -> None:
    """The same for a file that is to be written, or written anew."""
    try:
        if file.is_dir():
            raise OSError(errno.EISDIR, "it is a folder; name a file")
        if file.exists() and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        try_folder(file.parent, file.name)
    except (OSError, ValueError) as error:
        told = in_words(error) if isinstance(error, OSError) else str(error)
        raise UserError(one_line(f"{what} {file} cannot be written: {told}")) from None


def try_folder(folder: Path, name: str = "") -> None:
    """Writes a file without a name into the folder, or into the nearest that is there already.

    Raises OSError, ValueError.
    """
    if "\0" in f"{folder}{name}":
        raise ValueError("a path holds no NUL")
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        link = " (a link to nothing)" if there.is_symlink() and not there.exists() else ""
        raise OSError(errno.EIO, f"{there} is no folder{link}; name another place")
    longest = os.pathconf(there, "PC_NAME_MAX")
    for part in (*folder.absolute().relative_to(there).parts, name):
        if len(os.fsencode(part)) > longest:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), f"{part:.20}...")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(TRIED)
            file.flush()
    except OSError as error:  # of the folder, not of a file that has no name
        raise OSError(error.errno, error.strerror, str(there)) from None


def database_of(uri: str) -> Path | None:
    """The file of a sqlite store, None for other stores."""
    if not uri.startswith(SQLITE):
        return None
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def absolute_uri(uri: str) -> str:
    """A store's address that means the same in every working directory."""
    database = database_of(uri)
    if database is None or database.is_absolute() or database.name in ("", ":memory:"):
        return uri
    return SQLITE + str(database.absolute()) + uri.removeprefix(SQLITE)[len(str(database)) :]
