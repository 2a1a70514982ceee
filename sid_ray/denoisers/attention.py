"""Attention, in one place: the layout of the published weights and the choice of a kernel.

Kernels ("backends"): ``sdpa``, torch's own, everywhere; ``xformers``, on NVIDIA GPUs where the
package is installed. The choice is a property of the process, not of the network: it is set on
built modules with ``set_attention`` and recorded nowhere.

Precision. In float32 and float64 every backend equals softmax(q k^T / sqrt(d)) v to rounding. In
float16 and bfloat16 both kernels multiply with float32 accumulation, keep q k^T and the softmax in
float32 and round only the softmax's weights before the product with v. The official EDM code does
the same but for rounding k / sqrt(d) first; the official EDM2 code also rounds q k^T to float16,
so these kernels are the more exact there.

Symbols
    q, k, v   queries, keys, values     d   channels of a head
    B, C, H, W, L   batch, channels, height, width, positions (H * W for pixels)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.denoisers.layouts import is_channels_last
from sid_ray.denoisers.xformers_package import xformers_ops
from sid_ray.errors import UserError, nearest

BACKENDS = ("sdpa", "xformers")


def check_backend(backend: str, dtype: torch.dtype | None = None) -> None:
    """Raises UserError, in one line, for a backend that is unknown or cannot run here.

    ``dtype`` is what it is asked to compute in, None for float32.
    """
    if backend not in BACKENDS:
        hint = nearest(backend, BACKENDS)
        raise UserError(f"unknown attention {backend!r}; known: {', '.join(BACKENDS)}.{hint}")
    if backend == "xformers":
        xformers_ops(dtype or torch.float32)


def set_attention(module: nn.Module, backend: str) -> None:
    """Chooses the backend for every attention layer in module.

    Raises UserError, before anything is changed, for one that is unknown or cannot run here.
    """
    check_backend(backend, getattr(module, "compute_dtype", None))
    for layer in module.modules():
        if hasattr(layer, "attention_backend"):
            layer.attention_backend = backend  # type: ignore[assignment]


def _on_gpu(x: Tensor) -> bool:
    return x.device.type == "cuda"


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(d)) v. q [B, heads, L, d], k and v [B, heads, M, d] -> as q."""
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    if backend != "xformers" or not _on_gpu(q):
        check_backend(backend)
        raise UserError(f"attention 'xformers' cannot run on {q.device.type!r}; use 'sdpa'")
    swapped = (t.transpose(1, 2) for t in (q, k, v))  # [B, L, heads, d]
    return xformers_ops(q.dtype).memory_efficient_attention(*swapped).transpose(1, 2)


def head_count(channels: int, channels_per_head: int) -> int:
    """Heads at a width: 0, no attention at all, where it is narrower than one head.

    Raises ValueError where channels do not split evenly.
    """
    heads = channels // channels_per_head
    if heads and channels % heads:
        raise ValueError(f"{channels} channels do not split into {heads} heads")
    return heads


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """Output of a qkv convolution [B, 3C, H, W] -> q, k and v stacked, [3, B, heads, L, d].

    Channels are ordered (head, channel of the head, which of q, k, v): the layout of the published
    weights, not three consecutive thirds. Contiguous, because the fast kernels want d innermost.
    """
    batch, channels, height, width = qkv.shape
    split = qkv.reshape(batch, heads, channels // (3 * heads), 3, height * width)
    return split.permute(3, 0, 1, 4, 2).contiguous()


def merge_heads(out: Tensor, like: Tensor) -> Tensor:
    """[B, heads, L, d] -> [B, C, H, W], channels ordered (head, channel of the head).

    The size of the image and its order in memory are those of ``like`` [B, any, H, W].
    """
    height, width = like.shape[2:]
    if is_channels_last(like):
        pixels = out.transpose(1, 2).reshape(out.shape[0], height, width, -1)
        return pixels.permute(0, 3, 1, 2)
    return out.transpose(2, 3).reshape(out.shape[0], -1, height, width)
