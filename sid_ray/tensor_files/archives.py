"""Opens pickled files: plain pickles, torch's zip archives and torch's older archives.

The file is mapped, not read: weights stay in it until they are taken. Lengths are checked against
the file before anything of that length exists.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sid_ray.errors import UserError
from sid_ray.tensor_files.allowed import STORAGE_TYPES, AllowList
from sid_ray.tensor_files.inert import Account, RefusedFileError, TensorStorage, Uses
from sid_ray.tensor_files.pickles import PickleMachine

ZIP_MAGIC, ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
PICKLE_START = b"\x80"
MEMBER_COST = 1024
U64 = (1 << 64) - 1


@dataclass
class PickledFile:
    """What a pickled file holds, and what it would have run. ``trouble`` says why a tolerant
    reading stopped, if it did.
    """

    root: Any
    size: int
    container: str  # "pickle", "torch archive" or "older torch archive"
    uses: Uses = field(default_factory=Uses)
    trouble: str = ""


def is_pickled(start: bytes) -> bool:
    """Whether a file that begins so is a pickle or a torch archive."""
    return start.startswith((ZIP_MAGIC, PICKLE_START)) or start[:1] in b"c(}]"


def map_file(path: Path) -> memoryview:
    """The file's bytes, private to this process. Raises UserError when it cannot be opened."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise RefusedFileError("it is empty")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_pickled(path: Path, tolerant: bool = False) -> PickledFile:
    """Reads a file without running anything of it.

    Raises UserError (RefusedError) when it is damaged or asks for more than tensors and plain
    values. ``tolerant`` notes instead of refusing, to show what a hostile file would have done.
    """
    data = map_file(path)
    account, file = Account(len(data)), PickledFile(None, len(data), "pickle")
    try:
        if bytes(data[:4]) == ZIP_MAGIC:
            file.container = "torch archive"
            file.root = _read_zip(data, account, file.uses, tolerant)
        elif bytes(data[: len(LEGACY_START)]) == LEGACY_START:
            file.container = "older torch archive"
            file.root = read_legacy(data, account, file.uses, tolerant)
        else:
            file.root = _read_pickle(data, account, file.uses, tolerant)
    except RefusedFileError as error:
        if not tolerant:
            raise
        file.trouble = str(error)
    return file


def _read_pickle(data: memoryview, account: Account, uses: Uses, tolerant: bool) -> Any:
    def blob(part: memoryview) -> TensorStorage:
        storage = read_legacy(part, account, uses, tolerant)
        if not isinstance(storage, TensorStorage):
            raise RefusedFileError("a storage blob holds something other than one storage")
        return storage

    rules = AllowList(uses, blob=blob, tolerant=tolerant)
    return PickleMachine(data, 0, rules, account).run()


def read_legacy(data: memoryview, account: Account, uses: Uses, tolerant: bool) -> Any:
    """torch's format before 1.6, and that of every storage blob in a pickle: five small pickles,
    then the numbers of each storage behind their count.

    Read here and not by torch.load, which makes room for a storage before it looks whether the
    file holds it.
    """
    storages: dict[str, TensorStorage] = {}

    def find(key: tuple) -> TensorStorage:
        dtype = STORAGE_TYPES[key[1].name]
        storage = storages.setdefault(key[2], TensorStorage(dtype, key[4]))
        if (storage.dtype, storage.count) != (dtype, key[4]):
            raise RefusedFileError("it is damaged: one storage has two types or sizes")
        if key[4] * dtype.itemsize > len(data):
            raise RefusedFileError(f"a storage of {key[4]} numbers does not fit the file")
        return storage

    rules, position = AllowList(uses, storage=find, tolerant=tolerant), 0
    values = []
    for _ in range(5):
        machine = PickleMachine(data, position, rules, account)
        values.append(machine.run())
        position = machine.position
    magic, protocol, info, root, keys = values
    little = isinstance(info, dict) and info.get("little_endian") is True
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL or not little:
        raise RefusedFileError("a storage is not in torch's format, little-endian")
    if not isinstance(keys, list) or any(key not in storages for key in map(_text, keys)):
        raise RefusedFileError("it is damaged: its storages do not match their list")
    for key in keys:
        storage = storages[key]
        if position + 8 > len(data):
            raise RefusedFileError("it is cut: storages are missing")
        (count,) = struct.unpack_from("<Q", data, position)
        size = storage.count * storage.dtype.itemsize
        if count != storage.count or position + 8 + size > len(data):
            raise RefusedFileError(
                f"it is cut or damaged: a storage of {storage.count} numbers announces {count}"
            )
        storage.data = data[position + 8 : position + 8 + size]
        position += 8 + size
    return root


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class ZipMember:
    """One stored member of a zip archive."""

    data: memoryview
    crc: int


def _read_zip(data: memoryview, account: Account, uses: Uses, tolerant: bool) -> Any:
    members = zip_members(data, account)
    names = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(names) != 1:
        raise RefusedFileError("it is a zip archive but not one of torch: data.pkl is missing")
    prefix = names[0].removesuffix("data.pkl")
    order = members.get(prefix + "byteorder")
    if order is not None and bytes(order.data) != b"little":
        raise RefusedFileError("its numbers are big-endian; save it again on a common machine")
    storages: dict[str, TensorStorage] = {}

    def find(key: tuple) -> TensorStorage:
        dtype, count, name = STORAGE_TYPES[key[1].name], key[4], f"{prefix}data/{key[2]}"
        member = members.get(name)
        if member is None or len(member.data) < count * dtype.itemsize:
            found = "none" if member is None else f"{len(member.data)} B"
            raise RefusedFileError(
                f"a storage of {count} numbers ({dtype}) does not fit member {key[2]!a}: {found}"
            )
        account.charge(MEMBER_COST)
        storage = storages.setdefault(key[2], TensorStorage(dtype, count, member.data, member.crc))
        if (storage.dtype, storage.count) != (dtype, count):
            raise RefusedFileError("it is damaged: one storage has two types or sizes")
        return storage

    member = members[names[0]]
    if zlib.crc32(member.data) != member.crc:
        raise RefusedFileError("it is damaged: data.pkl does not match its checksum")
    return PickleMachine(
        member.data, 0, AllowList(uses, storage=find, tolerant=tolerant), account
    ).run()


def zip_members(data: memoryview, account: Account) -> dict[str, ZipMember]:
    """The members of an archive, by name; views, nothing unpacked.

    Raises RefusedError for a compressed member (a torch archive stores them as they are, so there
    is nothing that could swell), and for members outside the file or over one another.
    """
    members: dict[str, ZipMember] = {}
    spans: list[tuple[int, int]] = []
    for name, crc, start, size in _directory(data, account):
        if start + 30 > len(data) or bytes(data[start : start + 4]) != ZIP_MAGIC:
            raise RefusedFileError(f"it is damaged: no member {name!a} where its directory says")
        lengths = struct.unpack_from("<HH", data, start + 26)
        begin = start + 30 + sum(lengths)
        if begin + size > len(data):
            raise RefusedFileError(
                f"it is cut or damaged: member {name!a} of {size} B goes past its end"
            )
        members[name] = ZipMember(data[begin : begin + size], crc)
        spans.append((start, begin + size))
    spans.sort()
    for (_, end), (start, _) in itertools.pairwise(spans):
        if start < end:
            raise RefusedFileError(
                "its members lie over one another: it is damaged or made to swell"
            )
    return members


def _directory(data: memoryview, account: Account) -> Iterator[tuple[str, int, int, int]]:
    """Name, checksum, place and size of each member, from the archive's directory."""
    end = bytes(data[-65557:]).rfind(ZIP_END)
    if end < 0 or end + 22 > min(len(data), 65557):
        raise RefusedFileError("it is cut: the zip archive has no directory")
    end += max(len(data) - 65557, 0)
    count, size, position = struct.unpack_from("<HII", data, end + 10)
    if end >= 20 and bytes(data[end - 20 : end - 16]) == b"PK\x06\x07":  # zip64
        (place,) = struct.unpack_from("<Q", data, end - 12)
        if place + 56 > len(data) or bytes(data[place : place + 4]) != b"PK\x06\x06":
            raise RefusedFileError(
                "it is damaged: the zip archive's directory is not where it says"
            )
        count, size, position = struct.unpack_from("<QQQ", data, place + 32)
    if position + size > len(data):
        raise RefusedFileError(
            "it is cut or damaged: the zip archive's directory goes past its end"
        )
    stop = position + size
    for _ in range(count):
        account.charge(MEMBER_COST)
        if position + 46 > stop or bytes(data[position : position + 4]) != b"PK\x01\x02":
            raise RefusedFileError("it is damaged: the zip archive's directory is not whole")
        flags, method = struct.unpack_from("<HH", data, position + 8)
        crc, packed, unpacked, name_len, extra_len, note_len = struct.unpack_from(
            "<IIIHHH", data, position + 16
        )
        (start,) = struct.unpack_from("<I", data, position + 42)
        tail = position + 46
        if tail + name_len + extra_len + note_len > stop:
            raise RefusedFileError("it is damaged: the zip archive's directory is not whole")
        name = str(data[tail : tail + name_len], "utf-8", "backslashreplace")
        extra = data[tail + name_len : tail + name_len + extra_len]
        packed, unpacked, start = _wide(extra, packed, unpacked, start)
        if method != 0 or packed != unpacked or flags & 1:
            raise RefusedFileError(
                f"member {name!a} is compressed ({packed} B to {unpacked} B); a torch archive "
                "stores its members as they are: save it again with torch.save"
            )
        yield name, crc, start, unpacked
        position = tail + name_len + extra_len + note_len


def _wide(extra: memoryview, packed: int, unpacked: int, start: int) -> tuple[int, int, int]:
    """Sizes and place of a member beyond 4 GiB, from its zip64 field."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        body = extra[position + 4 : position + 4 + length]
        if kind == 1 and len(body) == length and length % 8 == 0:
            wide = iter(struct.unpack(f"<{length // 8}Q", body))
            unpacked = next(wide, U64) if unpacked == 0xFFFFFFFF else unpacked
            packed = next(wide, U64) if packed == 0xFFFFFFFF else packed
            start = next(wide, U64) if start == 0xFFFFFFFF else start
            break
        position += 4 + length
    return packed, unpacked, start
