"""What torch may do to numbers on a GPU for speed, decided once and said in the log.

The published runs switch TF32 and reductions in half precision off, and cuDNN's benchmark on.
torch 2.13 has other defaults: TF32 in convolutions, reductions in half precision. One function sets
all of it, in every process that computes: worker, evaluator, generate, encoding, final report.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it when its first handle is made
FIXED_WORKSPACE = ":4096:8"  # one of two sizes that cuBLAS documents as reproducible


def set_numerics(deterministic: bool = False) -> str:
    """Sets TF32, cuDNN and attention for this process; returns the line for the log.

    ``deterministic``: the same bits on the same kind of GPU, slower. Call it before CUDA starts:
    cuBLAS reads its workspace once.
    """
    switch_tf32_off()
    matmul = torch.backends.cuda.matmul
    # Sums of a split product stay float32, as in the published runs.
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_accumulation = False
    # Shapes do not change within a run, so the search is paid for once a shape. It may choose
    # another algorithm each time, and so other bits.
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.enable_cudnn_sdp(not deterministic)
    if deterministic:
        set_workspace(os.environ)
    return numerics_line(deterministic)


def switch_tf32_off() -> None:
    """For products and convolutions, by torch's older names of it.

    ``torch.compile`` reads these (torch/_inductor/kernel/conv.py:1070), which raises where only the
    newer ``fp32_precision`` was set; the newer names follow these.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def set_workspace(environment: MutableMapping[str, str]) -> None:
    """cuBLAS' fixed workspace; a process's environment before CUDA starts in it."""
    environment.setdefault(WORKSPACE, FIXED_WORKSPACE)


def numerics_line(deterministic: bool) -> str:
    """What the log says."""
    if deterministic:
        return "numbers: deterministic kernels, TF32 off, reductions in float32"
    return "numbers: TF32 off, reductions in float32, cuDNN chooses its fastest kernels"
