"""Members of a zip archive, checked once and then read from anywhere in it.

Workers are told where each member lies: the directory of a million of them is read once only, and
nothing of the archive is downloaded but what is asked for. No member is ever written to a path of
its own name.
"""

from __future__ import annotations

import itertools
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from sid_ray.data.names import shown_name
from sid_ray.data.options import MAX_LIST_BYTES, MAX_SAMPLE_BYTES, MIB
from sid_ray.data.samples import short_error
from sid_ray.data.windows import Window
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store

HEADER = struct.Struct("<4s22xHH")  # of a member: magic, lengths of its name and its extra field
MAGIC = b"PK\x03\x04"
EMPTY = b"PK\x05\x06"  # how an archive without members begins
LISTS = (".json", ".jsonl", ".csv", ".parquet")  # labels and captions
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ArchiveMember(NamedTuple):
    """Where a member's header is, its bytes in the file and unpacked, its method and its CRC."""

    start: int
    packed: int
    size: int
    method: int
    crc: int


@dataclass
class ZipReader:
    """Reads members of one archive; each process opens it by itself."""

    window: Window

    def read(self, name: str, place: Any) -> bytes:
        member = ArchiveMember(*place)
        header = self.window.read(member.start, HEADER.size)
        magic, *lengths = HEADER.unpack(header) if len(header) == HEADER.size else (b"", 0, 0)
        if magic != MAGIC:
            raise UserError("the zip archive is damaged: no member where its directory says")
        packed = self.window.read(member.start + HEADER.size + sum(lengths), member.packed)
        if len(packed) != member.packed:
            raise UserError("the zip archive is cut: the member goes past its end")
        return unpack(packed, member)


def unpack(packed: bytes, member: ArchiveMember) -> bytes:
    """A member's contents, never more than its directory entry says. Raises UserError."""
    data = packed
    if member.method == zipfile.ZIP_DEFLATED:
        machine = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = machine.decompress(packed, member.size + 1)
        except zlib.error as error:
            raise UserError(f"damaged in the zip archive ({error})") from None
    if len(data) != member.size:
        raise UserError(f"damaged in the zip archive: not the {member.size} B that it announces")
    if zlib.crc32(data) != member.crc:
        raise UserError("damaged in the zip archive: its checksum is wrong")
    return data


def list_zip(
    store: Store, file_name: str, source: str
) -> tuple[dict[str, ArchiveMember], list[str]]:
    """The files of an archive by name, in order of their names; and its empty folders.

    Raises UserError for what no honest archive of samples has: names that point elsewhere, links,
    passwords, members over one another or absurdly large.
    """
    with store.open(file_name) as file:
        length = store.size(file_name) or 0
        if file.read(len(EMPTY)) == EMPTY:
            raise UserError(f"{source} is an empty archive")
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except StoreError:
            raise
        except Exception as error:  # zipfile raises many kinds for a damaged directory
            raise UserError(
                f"{source} is not a whole zip archive ({short_error(error)}): fetch or "
                f"make it again"
            ) from None
    found: dict[str, ArchiveMember] = {}
    for info in infos:
        trouble = trouble_of_member(info, length)
        if info.filename in found:
            trouble = "is in the archive twice"
        if trouble:
            raise UserError(f"{source}: member {shown_name(info.orig_filename)} {trouble}: refused")
        if not info.is_dir():
            found[info.filename] = ArchiveMember(
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.compress_type,
                info.CRC,
            )
    for (one, before), (two, after) in itertools.pairwise(
        sorted(found.items(), key=lambda item: item[1].start)
    ):
        if before.start + HEADER.size + before.packed > after.start:
            raise UserError(f"{source}: members {one!a:.100} and {two!a:.100} overlap: refused")
    holding = {
        name[: end.start()] for name in found for end in re.finditer("/", name)
    }  # at any depth
    folders = [info.filename.rstrip("/") for info in infos if info.is_dir()]
    return dict(sorted(found.items())), [name for name in folders if name not in holding]


def trouble_of_member(info: zipfile.ZipInfo, length: int) -> str:
    """What is wrong with a directory entry, '' for nothing."""
    name = info.orig_filename
    parts = name.split("/")
    if name.startswith("/") or re.match(r"^[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in parts or "\\" in name or "\0" in name:
        return "has a path that leads elsewhere"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in METHODS:
        return f"is packed by method {info.compress_type}, not stored or deflated"
    most = MAX_LIST_BYTES if name.endswith(LISTS) else MAX_SAMPLE_BYTES
    if max(info.file_size, info.compress_size) > most:
        return f"announces {info.file_size / MIB:,.0f} MiB, at most {most // MIB} MiB"
    if info.header_offset + HEADER.size + info.compress_size > length:
        return "goes past the archive's end"
    return ""
