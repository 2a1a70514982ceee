"""A lack of memory is told from other errors by type or by the words of the libraries."""

import pytest
import torch

from sid_ray.device.memory import lacks_memory

NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error (run with NCCL_DEBUG=INFO for "
    "details), NCCL version 2.29.7\nLast error:\nCuda failure 2 'out of memory'"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        torch.distributed.DistBackendError(NCCL),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_seen(error):
    assert lacks_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
        ValueError("a test's file says out of memory"),
    ],
)
def test_other_errors_are_others(error):
    assert not lacks_memory(error)
