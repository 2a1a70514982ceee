"""Whether hosts see the same files. What one has written, another reads: a path alone proves
nothing, since every machine has a /tmp.

    token = Token.new(Store.at(folder))      on one host
    token.write()
    token.seen()                             on another
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store

TOKEN = ".host-"  # how tokens' names begin, in a folder that hosts must share
PATIENCE_S = 5.0  # for a network's file system that shows a new file late
AGAIN_S = 0.2
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
READ_WHOLE = 1 << 20  # bytes of a file whose sha256 is taken
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNKNOWN = "storage does not answer"  # or is full: others say so, and wait for it
NAMED = 4  # hosts in a line
INSTEAD = "s3://BUCKET/PREFIX or to a path that all hosts share"


class NotSharedError(UserError):
    """Hosts of one run see other files under the same name: trying again would not mend it."""


@dataclass(frozen=True)
class Token:
    """A small file that one host writes and others read.

    Name and text are drawn anew each time: a network's file system may remember for a minute that
    there was no such file.
    """

    store: Store
    name: str
    text: str

    @classmethod
    def new(cls, store: Store, who: str = "driver") -> Token:
        text = uuid.uuid4().hex
        return cls(store, f"{TOKEN}{who}-{text[:8]}", text)

    def write(self) -> str:
        """Why it is not there now, empty where it is. UNKNOWN for what waiting may mend."""
        try:
            self.store.write(self.name, self.text)
        except StoreError:
            return UNKNOWN
        except OSError as error:
            return error.strerror or str(error) if error.errno in REFUSALS else UNKNOWN
        return ""

    def seen(self, patience_s: float = PATIENCE_S) -> bool:
        """Whether this host reads what the token's host has written.

        True where the store cannot be read: then nothing is known, and others say what is wrong.
        """
        until = time.monotonic() + patience_s
        while True:
            try:
                if self.store.read_text(self.name) == self.text:
                    return True
            except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
                pass
            except OSError:
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(AGAIN_S)

    def remove(self) -> None:
        with suppress(OSError):  # a file of 32 bytes stays
            self.store.remove(self.name)


def answer(asked: Token, who: str, asker: str) -> tuple[str, Token | None]:
    """On another host than the ``asker``'s, which wrote ``asked``: what is wrong, empty for
    nothing; and a token of its own, named ``who``, by which the asker sees that it shares.
    """
    if not asked.seen():
        return f"sees nothing of {asker}", None
    mine = Token.new(asked.store, who)
    refused = mine.write()
    if refused in ("", UNKNOWN):
        return "", None if refused else mine
    return f"cannot write there ({refused})", None


def remove_tokens(store: Store) -> None:
    """Those that a killed process left on a disk."""
    if store.is_local:
        for path in store.folder.glob(f"{TOKEN}*"):
            path.unlink(missing_ok=True)


def not_shared(place: str, trouble: Iterable[str], flag: str) -> NotSharedError:
    """Names the hosts and what to use; ``trouble`` says of each host what it does not see."""
    return NotSharedError(
        f"{place} is not one folder for all hosts: {first_few(trouble)}: set {flag} to {INSTEAD}"
    )


def not_same(what: str, trouble: Iterable[str]) -> NotSharedError:
    """The same of what is only read; ``trouble`` says of each host how it differs."""
    return NotSharedError(
        f"{what} is not the same on all hosts: {first_few(trouble)}: bring the same files to every "
        "host, or use s3:// or a path that all hosts share"
    )


def first_few(texts: Iterable[str]) -> str:
    """Each once, the first few of them."""
    every = list(dict.fromkeys(texts))
    more = f", and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more


def content_digest(path: Path, suffixes: tuple[str, ...] = ("",)) -> str:
    """The same for the same file, or for a folder's files with these suffixes. Raises OSError.

    Of large files size and the sum of their words: as fast as they are read.
    """
    digest = hashlib.sha256()
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(suffixes))
    for file in files:
        if file.is_file():
            digest.update(f"{file.relative_to(path)}:{file_digest(file)}\n".encode())
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    size = path.stat().st_size
    if size <= READ_WHOLE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    whole = size // 8
    with path.open("rb") as file:
        words = np.memmap(file, np.uint64, "r", shape=(whole,))
        total = int(words.sum(dtype=np.uint64))
        file.seek(8 * whole)
        return f"{size}-{total:x}-{file.read().hex()}"


def this_machine() -> str:
    """The same for processes of one machine alone: hosts may have the same name."""
    try:
        since = BOOT_ID.read_text().strip()
    except OSError:
        since = ""
    return f"{os.uname().nodename}-{since}"


def host_name(address: str) -> str:
    """How a host is called in messages. ``address``: where others reach it."""
    return f"{os.uname().nodename} ({address})"
