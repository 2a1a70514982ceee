"""The package xformers, taken at its deeds: it is tried before it is used.

Its import only warns where its compiled part cannot be loaded, which is built for one CUDA and from
one torch on (xformers/_cpp_lib.py keeps the exception and goes on); what fails then is the first
attention. So a small one is computed, there and back, on the device and in the precision that it
is wanted for.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import torch

from sid_ray.errors import UserError

INSTALL = "pip install 'sid_ray[xformers]'"
INDEX = "https://download.pytorch.org/whl"
INSTEAD = "or take --resources.attention sdpa"
DEVICE = "cuda"
TRIAL = (1, 16, 1, 64)  # [B, L, heads, d]
# xformers.ops by the precisions it has computed in. A table, which torch.compile reads as it is:
# it would look into a function with a cache, and run the trial again.
WORKING: dict[torch.dtype, ModuleType] = {}


def xformers_ops(dtype: torch.dtype) -> ModuleType:
    """xformers.ops, once it has computed in this precision here.

    Raises UserError, in one line, where it is missing, does not fit this torch, or fails.
    """
    return WORKING.get(dtype) or found_working(dtype)


def found_working(dtype: torch.dtype) -> ModuleType:
    """xformers.ops after its trial. Raises UserError as ``xformers_ops``."""
    if not torch.cuda.is_available():
        raise UserError(
            "attention 'xformers' has kernels for NVIDIA GPUs only and this process sees none; "
            f"use 'sdpa' here (on a GPU machine: {INSTALL})"
        )
    try:
        import xformers.ops  # type: ignore[import-not-found, unused-ignore]
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        reason = "is not installed" if missing else f"fails: {line_of(error)}"
        raise UserError(
            f"attention 'xformers' {reason}; install it: {INSTALL}, {INSTEAD}"
        ) from error
    try:
        compute_once(xformers.ops, dtype)
    except Exception as error:  # whatever a compiled library raises
        raise UserError(misfit(dtype, error)) from error
    WORKING[dtype] = xformers.ops
    return xformers.ops


def compute_once(ops: ModuleType, dtype: torch.dtype) -> None:
    """A small attention, there and back."""
    q, k, v = (torch.ones(TRIAL, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(3))
    total = ops.memory_efficient_attention(q, k, v).float().sum()
    total.backward()
    total.item()  # a kernel that fails says so when it is waited for


def misfit(dtype: torch.dtype, error: Exception) -> str:
    """The line for an xformers that was imported and does not work: which versions, what to do."""
    try:
        own = version("xformers")
    except PackageNotFoundError:
        own = "of an unknown version"
    name = str(dtype).removeprefix("torch.")
    cuda = torch.version.cuda or "none"
    found = f"attention 'xformers': xformers {own} does not work in {name} with torch"
    found += f" {torch.__version__} (CUDA {cuda}): {built_for() or line_of(error)}"
    index = f"{INDEX}/cu{cuda.replace('.', '')}"
    return (
        f"{found}: take the build for this CUDA (pip install --force-reinstall --no-deps xformers "
        f"--index-url {index}), {INSTEAD}"
    )


def built_for() -> str:
    """Which torch and CUDA it was built for, where its compiled part was not loaded."""
    # The module keeps why, under private names, which a version may not have.
    library = sys.modules.get("xformers._cpp_lib")
    why = getattr(library, "_cpp_library_load_exception", None)
    if why is None:
        return ""
    try:
        built = why.build_info.metadata["version"]
        return f"it was built for torch {built['torch']} and CUDA {cuda_in_words(built['cuda'])}"
    except (AttributeError, KeyError, TypeError):
        return line_of(why)


def cuda_in_words(number: int | None) -> str:
    """1208 -> 12.8."""
    return "none" if number is None else f"{number // 100}.{number % 100}"


def line_of(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
