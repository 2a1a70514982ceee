"""Copies of a training state in host memory, made beside the training that goes on.

From a GPU they go to page-locked memory on a stream of their own, at the speed of PCIe: 25 GB/s
with version 4, 50 with 5. A copy to ordinary memory makes 3 to 6 and stops the process.
Three rules make that safe:

    the stream begins where the training's own stands, so it reads the state of this moment;
    before any of it is overwritten, the training's stream waits for the copies (``hold``): on the
    GPU, after all passes of the next phase, when they are long done;
    who reads a copy on the host waits for it first (``wait``).

The memory is allocated once and used again by the next set of copies, which so may only begin when
nobody reads the last one any more. From CPU memory it is a plain copy at once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

CHUNK = 1 << 29
"""Bytes of one piece of page-locked memory. torch rounds each up to a power of two."""
ALIGNED = 64  # bytes, at which a copy begins


class CopyStream(Protocol):
    """A stream of copies beside the one that computes."""

    def is_ours(self, value: Tensor) -> bool:
        """Whether a tensor lies where this stream copies from."""

    def follow(self) -> None:
        """Copies from here on come after all that the training has been told to compute."""

    def copy(self, target: Tensor, value: Tensor) -> None:
        """Has a tensor copied to host memory, sometime."""

    def mark(self) -> Any:
        """The end of what was asked for so far."""

    def hold(self, mark: Any) -> None:
        """The training computes nothing more before that mark. The host does not wait."""

    def wait(self, mark: Any) -> None:
        """Returns when all before that mark is copied."""


class CudaCopyStream:
    """Copies from one GPU."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def is_ours(self, value: Tensor) -> bool:
        return value.device.type == "cuda"

    def follow(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, target: Tensor, value: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            target.copy_(value, non_blocking=True)

    def mark(self) -> Any:
        return self.stream.record_event()

    def hold(self, mark: Any) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)

    def wait(self, mark: Any) -> None:
        # Threads begin on GPU 0: an event's call there would make a context on it, for each rank.
        with torch.cuda.device(self.device):
            mark.synchronize()


def page_locked(size: int) -> Tensor:
    """So many bytes of host memory that a GPU may write to by itself."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class PinnedMemory:
    """Host memory in pieces that are allocated once and handed out anew for each set of copies."""

    def __init__(self, allocate: Callable[[int], Tensor] = page_locked, chunk: int = CHUNK):
        self._allocate, self._chunk = allocate, chunk
        self._pieces: list[Tensor] = []
        self._piece, self._used = 0, 0

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(len(piece) for piece in self._pieces)

    def clear(self) -> None:
        """What was handed out may be handed out again."""
        self._piece, self._used = 0, 0

    def like(self, value: Tensor) -> Tensor:
        """Room for a tensor: of its shape and type, contiguous, with anything in it."""
        needed = prod(value.shape) * value.element_size()
        while self._piece < len(self._pieces):
            piece = self._pieces[self._piece]
            if self._used + needed <= len(piece):
                break
            self._piece, self._used = self._piece + 1, 0
        else:
            piece = self._allocate(max(needed, self._chunk))
            self._pieces.append(piece)
        room = piece[self._used : self._used + needed]
        self._used = min(len(piece), -(-(self._used + needed) // ALIGNED) * ALIGNED)
        return room.view(value.dtype).view(value.shape)


class Copies:
    """One set of copies after another. Without a stream each is made at once."""

    def __init__(self, stream: CopyStream | None = None, memory: PinnedMemory | None = None):
        self.stream, self._memory = stream, memory or PinnedMemory()
        self._done: Any = None  # the end of the newest set
        self._held = True

    @classmethod
    def off(cls, device: torch.device) -> Copies:
        """For a state that is on this device."""
        return cls(CudaCopyStream(device) if device.type == "cuda" else None)

    def begin(self) -> None:
        """A new set: what was copied before must not be read any more."""
        if self.stream is not None:
            self.wait()
            self._memory.clear()
            self.stream.follow()

    def of(self, value: Tensor, lasting: bool = True) -> Tensor:
        """A copy in host memory, also of a tensor that is there already.

        On a GPU it has the values of this moment, but not before ``wait`` returns. ``lasting``:
        the tensor stays as it is until ``hold`` is called; else the training's stream waits before
        it computes anything more, so that the tensor's memory may be used again.
        """
        value = value.detach()
        if self.stream is None or not self.stream.is_ours(value):
            return value.clone() if value.device.type == "cpu" else value.cpu()
        target = self._memory.like(value)
        if not lasting:
            self.stream.follow()  # it has only just been computed
        self.stream.copy(target, value)
        if not lasting:
            self.stream.hold(self.stream.mark())
        return target

    def end(self) -> None:
        """The set is whole."""
        if self.stream is not None:
            self._done, self._held = self.stream.mark(), False

    def hold(self) -> None:
        """To be called before anything that was copied is overwritten. Costs the host nothing."""
        if self.stream is not None and not self._held:
            self.stream.hold(self._done)
            self._held = True

    def wait(self) -> None:
        """Returns when the copies can be read."""
        if self.stream is not None and self._done is not None:
            self.stream.wait(self._done)
