"""What a kind of address means: where its files lie, and what the store behind it can do.

A new store is one class below Scheme and one entry in schemes.py (or one entry point of a package
of its own, see there); nothing else asks which kind an address is.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from sid_ray.errors import UserError
from sid_ray.storage.errors import (
    DeniedStoreError,
    FullStoreError,
    MissingFileError,
    NotExclusiveError,
    UnreachableStoreError,
)

Change = Callable[[bytes], bytes]
"""What makes of a file's bytes its new ones; there are none where there is no file."""


class Scheme:
    """One kind of address. What is not overridden holds for any pyarrow file system.

    Attributes:
        prefix: how addresses begin; empty for paths.
        form: how one looks, for messages.
        is_path: its files have paths on this machine; hosts see the same where they share a disk.
        is_fetched: what is there is brought to this machine before it is read.
        is_store: files can be kept there. Else networks alone are fetched from there.
        has_folders: folders are made, and a file is seen while it is written. Else a name with
            slashes is only a name, and a file appears when it is closed.
        keeps_checksums: what was stored comes back as it was; files are known whole by their sizes.
        endpoint: the variable of the environment that names its server; empty for none.
        takes_artifacts: MLflow can keep a run's artifacts there.
    """

    prefix = ""
    form = ""
    is_path = False
    is_fetched = True
    is_store = True
    has_folders = True
    keeps_checksums = False
    endpoint = ""
    takes_artifacts = False

    def address(self, text: str) -> str:
        """What a person wrote, in one spelling, without a slash at its end. Raises UserError."""
        parts = text.removeprefix(self.prefix).rstrip("/").split("/")
        if not all(parts) or ".." in parts:
            raise UserError(f"{text}: expected {self.form}")
        return text.rstrip("/")

    def path(self, url: str) -> str:
        """Where an address is on its file system."""
        return url.removeprefix(self.prefix)

    def filesystem(self, url: str) -> Any:
        """The pyarrow file system that an address lies on. Raises OSError."""
        raise NotImplementedError(self.prefix)

    def create(self, url: str, filesystem: Any) -> None:
        """Makes a folder, or sees that files can be put there. Raises OSError."""
        filesystem.create_dir(self.path(url), recursive=True)

    def look(self, url: str, filesystem: Any) -> None:
        """Raises OSError where there is no folder to look into."""
        from pyarrow import fs

        if filesystem.get_file_info(self.path(url)).type == fs.FileType.NotFound:
            raise MissingFileError(f"{url} does not exist")

    def server(self) -> str:
        """The server that is asked, where the environment names one."""
        return ""

    def write_new(self, url: str, data: bytes) -> bool:
        """Writes a file that must not be there: of many who try at once, one succeeds.

        Returns False where it is there. Raises NotExclusiveError where the store cannot tell,
        OSError.
        """
        raise NotExclusiveError(f"{url}: nothing says whether it is there already")

    def change(self, url: str, how: Change) -> None:
        """Replaces a file by what is made of it: of many who do so at once, each finds what the
        others have made, and ``how`` may be asked again.

        Raises NotExclusiveError where the store cannot tell, OSError.
        """
        raise NotExclusiveError(f"{url}: nothing says whether another has changed it")

    def is_own(self, error: OSError) -> bool:
        """Whether an error is of the store, and says nothing of what a file holds."""
        return error.errno is not None

    def error(self, what: str, error: OSError) -> OSError:
        """An error of the file system as one line, of the class that says what waiting mends."""
        text = " ".join(str(error.strerror or error).split())[:160]
        if isinstance(error, FileNotFoundError):
            return MissingFileError(f"{what} does not exist")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return FullStoreError(errno.ENOSPC, f"{what}: no space left in the store ({text})")
        if isinstance(error, PermissionError):
            return DeniedStoreError(f"{what}: access denied ({text})")
        return UnreachableStoreError(f"{what}: no answer ({text})")
