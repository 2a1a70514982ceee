"""Members of tar archives, as webdataset writes them: key.jpg, key.txt, key.cls, key.json.

An archive is listed once; members are then read where they lie, also in S3. Nothing is unpacked.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from typing import Any

from sid_ray.data.names import shown_name
from sid_ray.data.options import MAX_LIST_BYTES, MAX_SAMPLE_BYTES, MIB
from sid_ray.data.samples import short_error
from sid_ray.data.windows import Window, WindowFile
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store

PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
LISTS = (".json", ".jsonl", ".csv", ".parquet")
CHUNK = 4 * MIB


@dataclass
class TarReader:
    """Reads members of some archives; each process opens them by itself."""

    store: Store
    _windows: dict[str, Window] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def window(self, shard: str) -> Window:
        return self._windows.setdefault(shard, Window(self.store, shard))

    def read(self, name: str, place: Any) -> bytes:
        """``place``: the archive, where the member begins in it, and its size."""
        shard, start, size = place
        data = self.window(shard).read(start, size)
        if len(data) != size:
            raise UserError("the tar archive is cut: the member goes past its end")
        return data


def list_tar(reader: TarReader, shard: str, source: str) -> dict[str, tuple[str, int, int]]:
    """The files of an archive by name, in its own order, with their places.

    Raises UserError for an archive that is cut or packed, and for what no honest one holds.
    """
    length = reader.store.size(shard) or 0
    window = reader.window(shard)
    start = window.read(0, 6)
    packing = next((name for magic, name in PACKED.items() if start.startswith(magic)), "")
    if packing:
        raise UserError(
            f"{source}: packed by {packing}, so that members cannot be read where they lie: "
            "unpack it to a plain .tar"
        )
    found: dict[str, tuple[str, int, int]] = {}
    end = 0
    try:
        with tarfile.open(fileobj=WindowFile(window, length), mode="r:") as archive:
            for info in archive:
                end = max(end, info.offset_data + -(-stored_size(info) // 512) * 512)
                trouble = trouble_of(info, length)
                if info.name in found:
                    trouble = "is in the archive twice"
                if trouble:
                    raise UserError(f"{source}: member {shown_name(info.name)} {trouble}: refused")
                if info.isreg():
                    name = info.name.removeprefix("./")
                    found[name] = (shard, info.offset_data, info.size)
    except (StoreError, UserError):
        raise
    except Exception as error:  # tarfile raises many kinds for damaged headers
        raise UserError(
            f"{source} is not a whole tar archive ({short_error(error)}): fetch or make it again"
        ) from None
    check_end(window, end, length, source)
    return found


def stored_size(info: tarfile.TarInfo) -> int:
    return info.size if info.isreg() else 0


def check_end(window: Window, end: int, length: int, source: str) -> None:
    """tarfile takes a damaged header and a missing end for the end: samples would be lost."""
    block = window.read(end, 512) if end < length else b""
    if len(block) < 512 or block.strip(b"\0"):
        raise UserError(
            f"{source} is not a whole tar archive (cut or damaged at byte {end:,}): fetch or make "
            "it again"
        )
    for place in range(end, length, CHUNK):
        if window.read(place, min(CHUNK, length - place)).strip(b"\0"):
            raise UserError(
                f"{source} goes on behind its end (byte {end:,}): two archives put together? give "
                "them as two files of a folder"
            )


def trouble_of(info: tarfile.TarInfo, length: int) -> str:
    """What is wrong with a member, '' for nothing."""
    parts = info.name.split("/")
    if info.name.startswith("/"):
        return "has an absolute path"
    if ".." in parts or "\\" in info.name or "\0" in info.name:
        return "has a path that leads elsewhere"
    if any("\ud800" <= letter <= "\udfff" for letter in info.name):
        return "has a name that is not UTF-8"
    if info.issym() or info.islnk():
        return "is a link"
    if info.isdir():
        return ""
    if not info.isreg() or info.issparse():
        return f"is no plain file (type {info.type!a})"
    most = MAX_LIST_BYTES if info.name.endswith(LISTS) else MAX_SAMPLE_BYTES
    if not 0 <= info.size <= most:
        return f"announces {info.size / MIB:,.0f} MiB, at most {most // MIB} MiB"
    if info.offset_data + info.size > length:
        return "goes past the archive's end"
    return ""
