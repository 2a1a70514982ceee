"""glibc's allocator, told to keep what is freed: for CPU workers.

By default it gives each large block back to the system at once and gets the next one anew, which
the kernel fills with zeros page by page: a tenth of the time of a training step on a CPU.
"""

from __future__ import annotations

import ctypes
import os

from sid_ray.denoisers.cpu_convolution import CPU_CODE

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
LARGEST_THRESHOLD = 32 << 20  # glibc refuses more; larger blocks still come from the system
PAD = 256 << 20  # got from the system at once, where more is needed
VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """For this process, from now on. False where it is switched off (cpu_convolution.py), where
    there is no glibc, or its user has chosen."""
    if not CPU_CODE or any(os.environ.get(name) for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {M_MMAP_THRESHOLD: LARGEST_THRESHOLD, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: PAD}
    taken = [mallopt(name, value) for name, value in settings.items()]
    return taken == [1, 1, 1]
