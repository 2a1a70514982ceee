"""The order of images in memory: channels outermost (NCHW) or innermost (NHWC)."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether an image's channels are innermost in memory, and not its pixels as well."""
    last: bool = x.is_contiguous(memory_format=torch.channels_last)
    return last and not x.is_contiguous()
