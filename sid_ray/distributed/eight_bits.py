"""Adam's moments in 8 bits: bitsandbytes' quantisation, around the same fused kernel as ever.

Two ways were compared. bitsandbytes' own step takes the count of steps and the learning rate from
the host, so it could not skip an update that only the device knows not to be finite: the host would
wait in every update, and it keeps a first moment where beta1 is 0. Here its kernels open and close
the moments, and torch's fused Adam steps between: it reads ``found_inf`` on the device, and counts
there. That costs float32 copies of the moments of at most adam.AT_ONCE elements (or of one tensor).

A moment is a byte an element and a float32 scale a block of 256 (1.016 bytes), in the dynamic maps
of Dettmers et al. (8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861). Blocks belong
to the parameter: no world size changes them, but ZeRO's parts would. Tensors below ``LEAST``
elements stay float32, as bitsandbytes leaves them.

What is closed opens to numbers that close to the same bits: a checkpoint holds the opened float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sid_ray.denoisers.quantised import quiet_bitsandbytes, require_bitsandbytes

BLOCK, LEAST = 256, 4096


def require_functions() -> Any:
    """bitsandbytes' functions. Raises UserError where it is not installed."""
    require_bitsandbytes("training.optimizer adam8bit")
    quiet_bitsandbytes()
    import bitsandbytes.functional

    return bitsandbytes.functional


@functools.cache
def codes_of(signed: bool, device: torch.device) -> Tensor:
    """What the 256 codes stand for, of a block's largest magnitude.

    bitsandbytes' signed map ends at -0.993: a block whose largest element is negative would shrink
    each time it is opened and closed. Its CPU kernel writes -1 there itself.
    """
    codes: Tensor = require_functions().create_dynamic_map(signed=signed)
    if signed:
        codes[0] = -1.0
    return codes.to(device)


class EightBits:
    """A tensor of float32 numbers kept in 8 bits; starts as zeros. ``signed``: a first moment."""

    def __init__(self, like: Tensor, signed: bool):
        self.map = codes_of(signed, like.device)
        self.signed, self.shape = signed, like.shape
        self.codes, self.scales = self._closed(torch.zeros_like(like, dtype=torch.float32).view(-1))

    def open(self) -> Tensor:
        """[n], float32."""
        return self._opened(self.codes, self.scales)

    def close(self, value: Tensor, applied: Tensor | None = None) -> None:
        """Keeps a flat tensor; nothing where ``applied``, a bool [] on its device, is False."""
        for kept, new in zip((self.codes, self.scales), self._closed(value), strict=True):
            if applied is None:
                kept.copy_(new)
            else:
                torch.where(applied, new, kept, out=kept)

    def _closed(self, value: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.ops.bitsandbytes.quantize_blockwise(value, self.map, BLOCK)
        if self.signed:
            # Two codes next to 0 go to their neighbours the second time, and stay there.
            value = self._opened(*found)
            found = torch.ops.bitsandbytes.quantize_blockwise(value, self.map, BLOCK)
        codes, scales = found
        return codes, scales

    def _opened(self, codes: Tensor, scales: Tensor) -> Tensor:
        value: Tensor = torch.ops.bitsandbytes.dequantize_blockwise(
            codes, scales, self.map, BLOCK, torch.float32
        )
        return value
