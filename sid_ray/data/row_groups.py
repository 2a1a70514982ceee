"""The Parquet files of a prepared set: row groups by number, and what is wrong with them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from sid_ray.data.manifest import DataManifest, Shard
from sid_ray.data.samples import short_error
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError, UnreachableStoreError, retrying
from sid_ray.storage.store import Store

OPEN_FILES = 32


class DamagedDataError(UserError):
    """A prepared set's files are not what its manifest says; the text names the place."""


class Outage:
    """Several threads that wait for one store: one line when it is gone, one when it is back."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell, self._lock, self._waiting = tell, threading.Lock(), 0

    def teller(self) -> Callable[[str], None]:
        """The ``tell`` of one read: called when it begins to wait, and when it goes on."""
        waits = False

        def tell(text: str) -> None:
            nonlocal waits
            waits = not waits
            with self._lock:
                self._waiting += 1 if waits else -1
                if self._waiting == int(waits):  # the first that waits, the last that goes on
                    self._tell(text)

        return tell


class RowGroups:
    """Reads row groups of a set, from any number of threads.

    Args:
        store, manifest: where the set lies, and what is in it.
        tell: told in a line when the store cannot be reached, and when it is back.
        closing: ends the waiting for a store.
        give_up_s: seconds after which it is not waited for any longer.
    """

    def __init__(
        self,
        store: Store,
        manifest: DataManifest,
        tell: Callable[[str], None] = lambda text: None,
        closing: threading.Event | None = None,
        give_up_s: float = float("inf"),
    ):
        self.store, self.manifest = store, manifest
        self.rows = np.asarray(manifest.row_groups, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.rows)])
        self._ends = np.cumsum([len(shard.row_groups) for shard in manifest.shards])
        self._outage, self._closing, self._give_up_s = Outage(tell), closing, give_up_s
        self._lock = threading.Lock()
        self._metadata: dict[str, Any] = {}
        self._idle: OrderedDict[str, list[Any]] = OrderedDict()

    def shard(self, row_group: int) -> tuple[Shard, int]:
        """The file that holds a row group, and its number in there."""
        index = int(np.searchsorted(self._ends, row_group, side="right"))
        shard = self.manifest.shards[index]
        return shard, row_group - int(self._ends[index]) + len(shard.row_groups)

    def where(self, row_group: int, row: int | None = None) -> str:
        """'s3://x/part-00001.parquet, row group 3, row 17' for a person."""
        shard, number = self.shard(row_group)
        of_row = "" if row is None else f", row {row}"
        return f"{self.store}/{shard.name}, row group {number}{of_row}"

    def expected_bytes(self, row_group: int, columns: Sequence[str]) -> int:
        """About what these columns of a row group take in memory."""
        shard, _ = self.shard(row_group)
        rows, manifest = int(self.rows[row_group]), self.manifest
        known = {"label": 8, "latent": 4 * int(np.prod(manifest.shape or (0,)))}
        if manifest.text is not None:
            known["text"] = 2 * int(np.prod(manifest.text.shape))
        found = sum(known.get(column, 0) for column in columns) * rows
        rest = [column for column in columns if column not in known]
        others = sum(known.get(column, 0) for column in manifest.columns) * shard.rows
        if rest:  # images and prompts: the file knows
            found += max(shard.size - others, 0) * rows // max(shard.rows, 1)
        return found

    def read(self, row_group: int, columns: Sequence[str]) -> Any:
        """A row group's columns as an Arrow table; waits while the store cannot be reached.

        Raises DamagedDataError, or UnreachableStoreError when it is not to be waited for longer.
        """
        return retrying(
            lambda: self._read(row_group, columns),
            self._outage.teller(),
            self._give_up_s,
            self._closing,
        )

    def _read(self, row_group: int, columns: Sequence[str]) -> Any:
        shard, number = self.shard(row_group)
        where = self.where(row_group)
        with self._damage(where), self._opened(shard) as file:
            table = file.read_row_group(number, columns=list(columns), use_threads=False)
            empty = [name for name in columns if table.column(name).null_count]
        if table.num_rows != self.rows[row_group] or empty:
            found = f"column {empty[0]} has empty values" if empty else f"{table.num_rows} rows"
            raise DamagedDataError(
                f"{where}: {found}, the manifest says {self.rows[row_group]} rows: prepare the set "
                "again"
            )
        return table

    @contextmanager
    def _damage(self, where: str) -> Any:
        """What pyarrow raises, as damage or as a store that does not answer."""
        try:
            yield
        except (UnreachableStoreError, UserError):
            raise
        except StoreError as error:
            raise DamagedDataError(str(error)) from None
        except Exception as error:  # pyarrow raises many kinds for a damaged file
            if isinstance(error, OSError) and self.store.scheme.is_own(error):
                found = self.store.scheme.error(where, error)
                if isinstance(found, UnreachableStoreError):
                    raise found from None
                raise DamagedDataError(str(found)) from None
            what = short_error(error, 200)
            raise DamagedDataError(
                f"{where} cannot be read ({what}): prepare the set again"
            ) from None

    @contextmanager
    def _opened(self, shard: Shard) -> Any:
        """A reader of the file for this thread alone; kept for the next unless it fails."""
        with self._lock:
            idle = self._idle.get(shard.name)
            file = idle.pop() if idle else None
        if file is None:
            file = self._open(shard)
        try:
            yield file
        except BaseException:
            with suppress(Exception):
                file.close()
            raise
        with self._lock:
            self._idle.setdefault(shard.name, []).append(file)
            self._idle.move_to_end(shard.name)
            while sum(map(len, self._idle.values())) > OPEN_FILES:
                _, oldest = self._idle.popitem(last=False)
                for file in oldest:
                    file.close()

    def _open(self, shard: Shard) -> Any:
        from pyarrow import parquet

        file = self.store.open(shard.name)
        size = file.size()
        if size != shard.size:
            file.close()
            raise DamagedDataError(
                f"{self.store}/{shard.name} has {size:,} bytes, the manifest says "
                f"{shard.size:,}: copy or prepare the set again"
            )
        # One footer a file, however many threads read it.
        found = parquet.ParquetFile(
            file,
            metadata=self._metadata.get(shard.name),
            pre_buffer=not self.store.is_local,
        )
        if found.metadata.num_row_groups != len(shard.row_groups):
            raise DamagedDataError(
                f"{self.store}/{shard.name} has {found.metadata.num_row_groups} row groups, the "
                f"manifest says {len(shard.row_groups)}: prepare the set again"
            )
        self._metadata[shard.name] = found.metadata
        return found

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        with self._lock:
            for files in self._idle.values():
                for file in files:
                    file.close()
            self._idle.clear()
