"""What names the network that adapters lie over: its numbers, whatever files they are in."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sid_ray.weights.derived import derived
from sid_ray.weights.formats import read_weights
from sid_ray.weights.networks import fitted

DIGEST = "sha256"
BASE = "base_sha256"  # the note of a description that says it


def base_sha256(network: Path) -> str:
    """sha256 of the names, shapes and float32 values of a network's tensors.

    It is computed once for files that do not change, and kept in the cache. Raises UserError.
    """

    def make(folder: Path) -> None:
        (folder / DIGEST).write_text(tensors_sha256(fitted(read_weights(network))[2]))

    return (derived("digests", network, [], make) / DIGEST).read_text()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Of tensors by name, in whatever order and precision; several at once."""

    def one(name: str) -> bytes:
        value = tensors[name].detach().to(torch.float32).contiguous()
        head = f"{name} {list(value.shape)} ".encode()
        return hashlib.sha256(head + hashlib.sha256(value.numpy().tobytes()).digest()).digest()

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        return hashlib.sha256(b"".join(threads.map(one, sorted(tensors)))).hexdigest()
