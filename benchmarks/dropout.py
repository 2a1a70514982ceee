"""Dropout's masks: kernels and bytes an element, and CPU nanoseconds, of both kinds of masks.

    python -m benchmarks.dropout [--rounds 15]

Bytes are those of the operands of each kernel, as a GPU reads and writes them once; times are the
best of the rounds, the two in turn, on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sid_ray.denoisers.dropout import GOLDEN, _shift_right, _signed64, keep_mask, mix64
from sid_ray.training.allocator import keep_freed_memory

BATCH, ELEMENTS, P = 8, 256 * 32 * 32, 0.13  # CIFAR-10's highest resolution


def masks_1(keys: Tensor, site: int, p: float, elements: int) -> Tensor:
    """A hash of 64 bits an element, as masks were drawn at first."""
    start = mix64(keys + _signed64((site + 1) * GOLDEN))
    bits = mix64(start[:, None] + torch.arange(elements, device=keys.device).mul_(GOLDEN)[None])
    return _shift_right(bits, 11) >= int(p * 2**53)


class Traffic(TorchDispatchMode):
    """Kernels, and bytes of their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            operands = [t for t in tree_leaves((args, found)) if isinstance(t, Tensor)]
            self.kernels += 1
            self.bytes += sum(t.numel() * t.element_size() for t in operands)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    keep_freed_memory()
    keys = torch.randint(-(2**62), 2**62, (BATCH,), generator=torch.Generator().manual_seed(0))
    kinds: dict[str, Callable[..., Tensor]] = {"1": masks_1, "2": keep_mask}
    best = dict.fromkeys(kinds, float("inf"))
    for _ in range(rounds):
        for name, mask in kinds.items():
            began = time.perf_counter()
            mask(keys, 3, P, ELEMENTS)
            best[name] = min(best[name], time.perf_counter() - began)
    print("| masks | kernels | bytes an element | CPU, ns an element |\n|---|---:|---:|---:|")
    for name, mask in kinds.items():
        with Traffic() as traffic:
            mask(keys, 3, P, ELEMENTS)
        count = BATCH * ELEMENTS
        took = 1e9 * best[name] / count
        print(f"| {name} | {traffic.kernels} | {traffic.bytes / count:.0f} | {took:.2f} |")


if __name__ == "__main__":
    main()
