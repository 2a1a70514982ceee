"""How a lack of memory on a GPU is told from other errors."""

from __future__ import annotations

import torch

# Beside torch's allocator: CUDA itself (torch.AcceleratorError), NCCL's communicators
# (DistBackendError: "Cuda failure 2 'out of memory'"), and handles of cuBLAS and cuDNN.
WORDS = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


def lacks_memory(error: BaseException) -> bool:
    """Whether memory was lacking. Of all these errors only the allocator's has a type."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
