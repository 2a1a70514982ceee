"""Bytes from anywhere in one file of a store: many at once where they are asked for in order."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field
from typing import Any

from sid_ray.data.options import MIB
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store

FIRST_WINDOW, WINDOW = MIB // 16, 4 * MIB  # bytes read at once: at a new place, going on


@dataclass
class Window:
    """A file that each process opens by itself; may be shared by threads."""

    store: Store
    file_name: str
    _lock: Any = field(default=None, repr=False, compare=False)
    _file: Any = field(default=None, repr=False, compare=False)
    _begin: int = field(default=0, repr=False, compare=False)
    _bytes: bytes = field(default=b"", repr=False, compare=False)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "file_name": self.file_name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, start: int, count: int) -> bytes:
        """Up to ``count`` bytes, fewer at the file's end. Raises UserError, StoreError."""
        with self._lock:
            offset = start - self._begin
            if offset < 0 or offset + count > len(self._bytes):
                self._fill(start, count)
                offset = 0
            return self._bytes[offset : offset + count]

    def _fill(self, start: int, count: int) -> None:
        if self._file is None:
            self._file = self.store.open(self.file_name)
        try:
            self._file.seek(start)
            goes_on = 0 <= start - self._begin <= len(self._bytes) + FIRST_WINDOW
            self._bytes = self._file.read(max(count, WINDOW if goes_on else FIRST_WINDOW))
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{self.store}/{self.file_name}: {error}") from None
        except (ValueError, OverflowError):  # pyarrow: a place that no file has
            raise UserError(f"the archive is damaged: it points to byte {start:,}") from None
        self._begin = start


class WindowFile(io.RawIOBase):
    """A window as a file, for libraries that read one."""

    def __init__(self, window: Window, size: int):
        self.window, self.size, self.place = window, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise OSError(f"a place before the file's start: {start + offset}")
        self.place = start + offset
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.size - self.place))
        data = self.window.read(self.place, count) if count else b""
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)
