"""Prompts' embeddings on this machine's disk, so that large text encoders leave memory.

    CACHE/prompts/KEY/AB/ABCDEF...     one prompt: the checksum, then a safetensors file

KEY is of all that an embedding's bits depend on (the encoders' content, their precision, the kind
of device, the libraries); the name below it is the prompt's own sha256. Rows are stored in the
dtype that the encoders compute in, and what has just been made goes through that dtype, too: a
run's numbers are the same whether they were made or read.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import math
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sid_ray.denoisers.encoder_parts import to_device
from sid_ray.denoisers.text import Tell, TextEmbeddings, say_aside
from sid_ray.errors import UserError
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.durable import PART, locked, replace_file

CAP = "SID_RAY_TEXT_CACHE_GIB"
CAP_GIB = 64.0  # 27,000 prompts of 2.4 MiB; the least recently used leave first
KEPT_FREE = 1 << 30  # bytes of the disk that are left to others
CHECKSUM_DIGITS = 8
QUIET_CALLS = 8  # without a prompt that was not stored, until encoders leave memory
BEING_WRITTEN_S = 3600.0
WORTH_SAYING = 64  # prompts
LOOK_AGAIN = 256  # rows written, until what others have written is counted, too
EncodePrompts = Callable[[Sequence[str]], Tensor]  # prompts -> packed [B, T, D], float32


def cap_bytes() -> int:
    """How large CACHE/prompts may grow. Raises UserError."""
    said = os.environ.get(CAP, "")
    try:
        gib = float(said) if said else CAP_GIB
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 2**20:
        raise UserError(f"{CAP} is {said!r}; expected a number of GiB, 0 keeps nothing")
    return int(gib * 2**30)


class PromptFolder:
    """The rows [T, D] of one making, as files. Nothing is raised for a disk that cannot be used:
    ``usable`` tells, and rows are made again.

    Args:
        making: all that the bits of a row depend on but for its prompt.
        shape, dtype: of a row.

    Attributes:
        evicts: whether a new row takes the place of the least recently used ones. Of more prompts
            than have room each would leave before it is asked for again: then what is there stays.
    """

    def __init__(self, making: str, shape: tuple[int, int], dtype: torch.dtype):
        self.home = cache_folder() / "prompts"
        self.folder = self.home / hashlib.sha256(making.encode()).hexdigest()[:20]
        self.shape, self.dtype = shape, dtype
        self.cap = cap_bytes()
        self.usable = self.cap > 0
        self.evicts = True
        self.held = -1  # bytes below home, as this process knows; -1: not looked at
        self.written = 0  # rows since it looked: other processes write, too

    @cached_property
    def file_bytes(self) -> int:
        return len(file_of(torch.zeros(self.shape, dtype=self.dtype)))

    def fits(self, count: int) -> bool:
        """Whether so many rows have room, where there are no others."""
        return count * self.file_bytes <= self.cap

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For one process of this machine at a time, where the disk can be used."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                if self.usable:
                    stack.enter_context(locked(self.folder))
            yield

    def path(self, prompt: str) -> Path:
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self.folder / name[:2] / name

    def has(self, prompt: str) -> bool:
        return self.path(prompt).is_file()

    def read(self, prompt: str) -> Tensor | None:
        """The row; None where it is not there, or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path(prompt)
        try:
            data = path.read_bytes()
            checksum, rest = data[:CHECKSUM_DIGITS], data[CHECKSUM_DIGITS:]
            if checksum != checksum_of(rest):
                return None
            row = load(rest)["row"]
            os.utime(path)  # the least recently used leave first
        except (OSError, SafetensorError, LookupError, ValueError):
            return None
        return row if (tuple(row.shape), row.dtype) == (self.shape, self.dtype) else None

    def write(self, prompt: str, row: Tensor) -> None:
        """Keeps a row, if there is room. Others may be writing the same one."""
        if not self.usable:
            return
        path = self.path(prompt)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._make_room(self.file_bytes):
                replace_file(path, file_of(row.detach().to("cpu", self.dtype)), sync=False)
        except OSError as error:
            self.usable = False
            print(
                f"embeddings of prompts are not kept in {self.home} ({error.strerror or error}): "
                "text encoders stay in memory",
                file=sys.stderr,
            )

    def _make_room(self, size: int) -> bool:
        """Whether there is room now. Raises OSError where the disk is full but for what is left to
        others.
        """
        full = self.held + size > self.cap
        if self.held < 0 or (self.evicts and full) or self.written >= LOOK_AGAIN:
            files = sorted(self._files(), key=lambda found: found[0])
            self.held, self.written = sum(length for _, length, _ in files), 0
            full = self.held + size > self.cap
            while self.evicts and files and full and self.held + size > 0.9 * self.cap:
                _, length, path = files.pop(0)
                path.unlink(missing_ok=True)
                self.held -= length
        if self.held + size > self.cap:
            return False
        if shutil.disk_usage(self.folder).free < size + KEPT_FREE:
            raise OSError(errno.ENOSPC, "no space left on the disk")
        self.held, self.written = self.held + size, self.written + 1
        return True

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, size, path) of every row of every making."""
        for path in self.home.glob("*/??/*"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                if path.suffix == PART and time.time() - stat.st_mtime < BEING_WRITTEN_S:
                    continue
                yield stat.st_mtime, stat.st_size, path


def file_of(row: Tensor) -> bytes:
    """What a row's file holds."""
    from safetensors.torch import save

    rest = save({"row": row.contiguous()})
    return checksum_of(rest) + rest


def checksum_of(data: bytes) -> bytes:
    """For a machine that lost power while it wrote."""
    return f"{zlib.crc32(data):08x}".encode()


def too_many(count: int, folder: PromptFolder) -> str:
    """A line for a person about more prompts than have room, and what to do."""
    needed = math.ceil(count * folder.file_bytes / 2**30)
    return (
        f"embeddings of {count:,} prompts take {needed:,} GiB, {folder.home} keeps "
        f"{folder.cap / 2**30:.4g}: text encoders stay in memory and embed prompts again and "
        f"again; set {CAP}={needed} where the disk has the room, or embed them beforehand with "
        "sid-ray data prepare --encode-text"
    )


class StoredEmbeddings(TextEmbeddings):
    """``TextEmbeddings`` whose encoders are loaded when a prompt is asked for that neither memory
    nor disk holds, and leave memory after ``QUIET_CALLS`` calls without one, or after ``prepare``.

    Args:
        open_encoders: loads them; what it returns is let go when they shall leave.
        open_folder: where rows are kept; asked once, at the first prompt.
        device: of the rows that ``embed`` returns.
    """

    def __init__(
        self,
        open_encoders: Callable[[], EncodePrompts],
        open_folder: Callable[[], PromptFolder],
        device: torch.device | str = "cpu",
        max_prompts: int = 64,
        batch: int = 8,
    ):
        super().__init__(list, self._run, max_prompts, batch, device)
        self.open_encoders, self.open_folder = open_encoders, open_folder
        self.encoders: EncodePrompts | None = None
        self.quiet = 0
        self.stays = False  # encoders: there are more prompts than the disk may hold

    @cached_property
    def folder(self) -> PromptFolder:
        return self.open_folder()

    def embed(self, prompts: Sequence[str]) -> Tensor:
        self.quiet += 1
        rows = super().embed(prompts)
        if self.quiet >= QUIET_CALLS:
            self.release()
        return rows

    def prepare(self, prompts: Sequence[str], more: int = 0, tell: Tell = say_aside) -> None:
        """All these prompts, and the empty one, are on the disk afterwards, and the encoders out of
        memory. Of the processes of a machine one embeds, the others wait for it.

        Where the disk may hold fewer than these and ``more``, ``tell`` hears of it, and prompts are
        embedded as they are asked for: encoders stay, loaded by one process after the other. So
        they do where the disk cannot be used.
        """
        wanted = list(dict.fromkeys(("", *prompts)))
        self.stays = not self.folder.fits(len(wanted))
        if not self.folder.fits(len(wanted) + more):
            if self.folder.usable:
                tell(too_many(len(wanted) + more, self.folder))
            self.folder.evicts, wanted = False, wanted[:1]
        if self.stays or any(not self.folder.has(prompt) for prompt in wanted):
            with self.folder.alone():
                self._store([prompt for prompt in wanted if not self.folder.has(prompt)], tell)
                if self.stays:
                    self._load()
        self.release()

    def release(self) -> None:
        """Lets the encoders go, where they are not needed all the time. The next prompt that is not
        stored loads them again.
        """
        if self.encoders is None or self.stays or not self.folder.usable:
            return
        self.encoders = None
        gc.collect()  # modules hold one another in cycles
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _store(self, prompts: list[str], tell: Tell) -> None:
        if len(prompts) >= WORTH_SAYING:
            tell(f"embedding {len(prompts):,} prompts, which are kept in {self.folder.home}")
        for start in range(0, len(prompts), self.batch):
            if not self.folder.usable:
                return
            self._make(prompts[start : start + self.batch])

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """Every prompt once: of the disk, or made and kept there."""
        stored = {prompt: self.folder.read(prompt) for prompt in prompts}
        found = self._on_device({p: row for p, row in stored.items() if row is not None})
        missing = [prompt for prompt in prompts if prompt not in found]
        return found | (self._make(missing) if missing else {})

    def _make(self, prompts: list[str]) -> dict[str, Tensor]:
        self.quiet = 0
        made = super()._encode(prompts)
        for prompt, row in made.items():
            self.folder.write(prompt, row)
        return made

    def _on_device(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rows of the disk in float32; the host does not wait for the copy. Each owns its memory: a
        view would keep all of them alive.
        """
        if not rows:
            return {}
        there = to_device(torch.stack(list(rows.values())), torch.device(self.store or "cpu"))
        copies = [row.to(torch.float32, copy=True) for row in there]
        return dict(zip(rows, copies, strict=True))

    def _load(self) -> EncodePrompts:
        if self.encoders is None:
            self.encoders = self.open_encoders()
        return self.encoders

    def _run(self, prompts: Sequence[str]) -> Tensor:
        return self._load()(prompts).to(self.folder.dtype).float()
