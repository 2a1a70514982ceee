"""Peak memory of one call, Python's and torch's."""

from __future__ import annotations

import gc
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


@contextmanager
def address_space(extra: int) -> Iterator[None]:
    """At most ``extra`` bytes more may be reserved inside: an allocation of 10 GB fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def peak_bytes(function: Callable[[], object]) -> int:
    """The larger of what Python allocated and what the process grew by, at its peak."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    tracemalloc.start()
    try:
        function()
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return max(python, _status("VmHWM") - before)
