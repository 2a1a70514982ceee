"""Order in memory of images within EDM's CIFAR-10 network, where GroupNorm is as on CUDA.

    python -m benchmarks.layouts

On CUDA torch 2.13 normalises groups of contiguous images only, and returns such (pytorch issue
111824; the kernel for channels_last is newer). Here it is told to do the same on a CPU: how many
convolutions then see which order, and how many bytes are brought from one order into the other.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sid_ray.denoisers import cpu_convolution
from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.denoisers.layouts import is_channels_last
from sid_ray.denoisers.precondition import set_memory_format
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.types import Condition

MIB = 2**20


class Layouts(TorchDispatchMode):
    """Counts orders of convolutions' images, and bytes read and written to change one."""

    def __init__(self, like_cuda: bool) -> None:
        super().__init__()
        self.like_cuda, self.changed = like_cuda, 0
        self.orders: Counter[str] = Counter()

    def contiguous(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim != 4 or value.is_contiguous():
            return value
        self.changed += 2 * value.nbytes
        return value.contiguous()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if self.like_cuda and name.startswith("native_group_norm"):
            args = tuple(map(self.contiguous, args))
        found = func(*args, **(kwargs or {}))
        if name.startswith("convolution"):
            self.orders["channels_last" if is_channels_last(args[0]) else "contiguous"] += 1
        if name in ("clone.default", "_to_copy.default") and found.ndim == 4:
            differs = is_channels_last(found) != is_channels_last(args[0])
            self.changed += 2 * found.nbytes * differs
        return found


def main() -> None:
    cpu_convolution.ONEDNN = False  # GPUs do not use it
    torch.set_num_threads(1)
    print("| memory_format | GroupNorm | convolutions' images | MiB an image to change orders |")
    print("|---|---|---|---:|")
    for order in ("contiguous", "channels_last"):
        for like_cuda in (True, False):
            torch.manual_seed(0)
            sizes = {"img_resolution": 32, "img_channels": 3, "label_dim": 10}
            net = EDMDenoiser(
                EDMNetwork(**sizes, model_channels=64, channel_mult=(2, 2, 2), num_blocks=2)
            )
            set_memory_format(net, order)
            x = torch.randn(1, 3, 32, 32, requires_grad=True)
            with Layouts(like_cuda) as seen:
                found = net(x, EDMSchedule().level(torch.ones(1)), Condition(torch.eye(10)[:1]))
                found.x0.square().sum().backward()
            as_on = "as on CUDA" if like_cuda else "keeps the order"
            orders = ", ".join(f"{count} {name}" for name, count in sorted(seen.orders.items()))
            print(f"| {order} | {as_on} | {orders} | {seen.changed / MIB:.1f} |", flush=True)


if __name__ == "__main__":
    main()
