"""What a pickled file may become: plain values and the inert records below, nothing else.

A record remembers what the file asked for. It has no behaviour of the class it stands for, so
holding one, walking one and throwing one away runs nothing from the file.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sid_ray.errors import UserError

MIB = 1 << 20
MAX_DIMENSIONS = 16


class RefusedFileError(UserError):
    """A file that is damaged, or that asks for something other than tensors and plain values."""


class Account:
    """What reading one file may cost in memory, estimated from above before it is spent.

    A byte of a hostile file may ask for hundreds of bytes of memory (an empty set, a memo entry),
    so objects are paid for: at most twice the file's size and 16 MiB, never more than 1 GiB. The
    weights themselves are not objects: they stay in the file until they are taken.
    """

    def __init__(self, file_size: int):
        self.left = min(2 * file_size + 16 * MIB, 1024 * MIB)

    def charge(self, amount: int) -> None:
        """Raises RefusedError when the file asks for more than its size allows."""
        self.left -= amount
        if self.left < 0:
            raise RefusedFileError("it asks for more objects than a file of its size needs")


@dataclass(frozen=True)
class Global:
    """A name that the file would have imported."""

    name: str


@dataclass(eq=False)
class Inert:
    """An object of a class that is known but not built, or a call that was not made.

    ``state`` is what its __setstate__ would have been given, ``items`` what it would have been
    filled with when it is a kind of dict or list.
    """

    origin: str
    arguments: tuple = ()
    state: Any = None
    items: dict = field(default_factory=dict)
    elements: list = field(default_factory=list)

    @property
    def class_name(self) -> str:
        return self.origin.rpartition(".")[2]


@dataclass(eq=False)
class Persistent(Inert):
    """An object of the persistence layout, which carries the source text of its own module.

    The text is kept for ``sid-ray weights inspect`` and never compiled.
    """

    recorded_class: str = ""
    source: str = ""

    @property
    def class_name(self) -> str:
        return self.recorded_class


@dataclass(eq=False)
class NumpyType:
    """A numpy dtype of plain numbers; ``order`` arrives after the code."""

    code: str
    order: str = "|"


@dataclass(eq=False)
class NumpyArray:
    """A numpy array; filled after it is made. ``data`` is a view of the file."""

    shape: tuple[int, ...] = (0,)
    type: NumpyType | None = None
    data: memoryview = field(default_factory=lambda: memoryview(b""))


@dataclass(eq=False)
class TensorStorage:
    """The numbers of one or more tensors: a view of the file, set once its place is known."""

    dtype: torch.dtype
    count: int
    data: memoryview | None = None
    crc: int | None = None  # of zip members; checked when the numbers are first taken

    def check(self) -> None:
        """Raises RefusedError where the numbers do not match their checksum."""
        if self.crc is not None and self.data is not None and zlib.crc32(self.data) != self.crc:
            raise RefusedFileError(
                "it is damaged: the numbers of a tensor do not match their checksum"
            )
        self.crc = None


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that still lies in the file. make_tensor has checked that it fits its storage."""

    storage: TensorStorage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def numel(self) -> int:
        return math.prod(self.shape)

    def reach(self) -> int:
        """Elements of the storage from the tensor's first to its last one."""
        if not self.numel():
            return 0
        return 1 + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )

    def take(self) -> Tensor:
        """A contiguous tensor of its own memory. Raises RefusedError where the file is damaged."""
        if not self.numel():
            return torch.empty(self.shape, dtype=self.dtype)
        if self.storage.data is None:
            raise RefusedFileError("it is cut: a tensor's numbers are missing")
        self.storage.check()
        width = self.dtype.itemsize
        start = self.offset * width
        part = self.storage.data[start : start + self.reach() * width]
        # Copied as bytes first: in a pickle, numbers begin at any address.
        numbers = torch.frombuffer(part, dtype=torch.uint8).clone().view(self.dtype)
        return torch.as_strided(numbers, self.shape, self.stride).contiguous()


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def make_tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    """A tensor over a storage. Raises RefusedError where it does not fit."""
    whole = (
        isinstance(storage, TensorStorage)
        and _natural(offset)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= MAX_DIMENSIONS
        and all(_natural(value) for value in (*shape, *stride))
    )
    if not whole:
        raise RefusedFileError("a tensor's shape, stride or offset is not a list of plain numbers")
    tensor = StoredTensor(storage, offset, shape, stride)
    if offset + tensor.reach() > storage.count or tensor.numel() > storage.count:
        raise RefusedFileError(
            f"a tensor of shape {str(list(shape))[:80]}, stride {str(list(stride))[:80]} and "
            f"offset {offset} does not fit its storage of {storage.count} numbers"
        )
    return tensor


@dataclass
class Uses:
    """What unpickling the file naively would have imported, called and executed."""

    imports: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    sources: dict[str, list[str]] = field(default_factory=dict)  # source text -> class names

    def note(self, table: dict[str, int], name: str) -> None:
        table[name] = table.get(name, 0) + 1


def printable(text: str) -> str:
    """Text of a file as it may be shown on a terminal: one line, no control characters."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def as_mapping(value: Any) -> Mapping | None:
    """A dict of the file, also one of a dict class; None for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Inert) and value.items:
        return value.items
    return None
