"""The table of all kinds of addresses. A new store is one entry here, or in a package of its own:

[project.entry-points."sid_ray.stores"]
toy = "toy_store:SCHEME"          an object of a class below Scheme
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError
from sid_ray.storage.durable import only_writer, replace_file
from sid_ray.storage.places import expanded
from sid_ray.storage.s3 import S3
from sid_ray.storage.scheme import Change, Scheme

GROUP = "sid_ray.stores"  # of entry points


class Disk(Scheme):
    """A path: a disk of this machine, or one that hosts share."""

    form = "a path"
    is_path = True
    is_fetched = False

    def address(self, text: str) -> str:
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(f"{text!a:.300} is no path: it is not UTF-8, or holds a zero byte")
        return str(expanded(text).absolute())

    def filesystem(self, url: str) -> Any:
        from pyarrow import fs

        return fs.LocalFileSystem()

    def is_own(self, error: OSError) -> bool:
        return False  # a disk that fails does not come back

    def write_new(self, url: str, data: bytes) -> bool:
        """The system sees to it, also where hosts share the disk over NFS."""
        try:
            file = os.open(url, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(data)
        except OSError:
            Path(url).unlink(missing_ok=True)
            raise
        return True

    def change(self, url: str, how: Change) -> None:
        with only_writer(Path(url)) as file:
            data = file.read()
            if (new := how(data)) != data:
                replace_file(Path(url), new)


class NetworkScheme(Scheme):
    """Networks are fetched from there (weights/sources.py); nothing is kept."""

    is_store = False

    def __init__(self, prefix: str, form: str, is_fetched: bool = True):
        self.prefix, self.form, self.is_fetched = prefix, form, is_fetched

    def address(self, text: str) -> str:
        raise UserError(f"{text}: expected {stores()}")


DISK, BUILTIN = Disk(), NetworkScheme("builtin:", "builtin:NAME", is_fetched=False)
SCHEMES: dict[str, Scheme] = {
    scheme.prefix: scheme
    for scheme in (
        DISK,
        BUILTIN,
        NetworkScheme("https://", "https://"),
        NetworkScheme("http://", "http://"),
        S3(),
        NetworkScheme("hf://", "hf://OWNER/REPO/PATH"),
    )
}


def register(scheme: Scheme) -> None:
    """Adds a kind of address for this process; an entry point adds it for all.

    Raises UserError where another one begins alike.
    """
    if SCHEMES.setdefault(scheme.prefix, scheme) is not scheme:
        raise UserError(f"two stores have addresses that begin with {scheme.prefix}: uninstall one")


@functools.cache
def load_entry_points() -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        try:
            scheme = point.load()
        except Exception as error:  # a package's own code may fail in any way
            raise UserError(
                f"store {point.name} ({point.value}) cannot be loaded ({type(error).__name__}: "
                f"{error}): mend or uninstall its package"
            ) from error
        register(scheme)


def scheme_of(address: str) -> Scheme:
    """The kind of an address. Raises UserError for one that is not known."""
    kind, mark, _ = address.partition("://")
    if not mark:
        return BUILTIN if address.startswith(BUILTIN.prefix) else DISK
    if kind + mark not in SCHEMES:
        load_entry_points()
    if kind + mark not in SCHEMES:
        known = ", ".join(scheme.form for scheme in SCHEMES.values())
        raise UserError(f"no source of kind {kind}://; known: {known}")
    return SCHEMES[kind + mark]


def is_path(address: str) -> bool:
    """Whether it is one of a disk, which means something else on each host, and no other kind."""
    return "://" not in address and scheme_of(address).is_path


def is_elsewhere(address: str) -> bool:
    """Whether it is in a store that is no disk: the same place for all hosts."""
    scheme = scheme_of(address)
    return scheme.is_store and not scheme.is_path


def stores() -> str:
    """How addresses look at which files can be kept: 'a path or s3://BUCKET/PREFIX'."""
    return " or ".join(scheme.form for scheme in SCHEMES.values() if scheme.is_store)
