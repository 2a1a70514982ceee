"""Attention kernels: torch's own and xformers', their numbers and their speed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import torch
from torch import Tensor

from sid_ray.commands.device.rows import (
    MEASURED,
    DeviceRow,
    Rig,
    guarded,
    held_to,
    not_looked_at,
)
from sid_ray.commands.device.timing import seconds_of
from sid_ray.denoisers.attention import BACKENDS, attend, check_backend
from sid_ray.errors import UserError

# (batch, heads, queries, keys, channels of a head): EDM2 at 16x16 and 8x8, Stable Diffusion's own
# and to text at 64x64, CIFAR's one head.
SHAPES = (
    (16, 8, 256, 256, 64),
    (64, 12, 64, 64, 64),
    (4, 8, 4096, 4096, 40),
    (4, 8, 4096, 77, 40),
    (64, 1, 256, 256, 256),
)
SMALL_SHAPES = ((2, 2, 16, 16, 8), (2, 2, 16, 7, 8))
# Relative error of the output against float64: rounding of each precision.
BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def verify_attention(rig: Rig) -> Iterator[DeviceRow]:
    """Output and gradients against float64, and seconds, of each kernel that is here."""
    device = rig.first
    for backend in BACKENDS:
        for dtype, bound in BOUNDS.items():
            precision = str(dtype).removeprefix("torch.")
            try:
                check_backend(backend, dtype)
            except UserError as error:
                yield not_looked_at(f"{backend}, {precision}", str(error))
                continue
            for shape in SMALL_SHAPES if rig.small else SHAPES:
                name = f"{backend}, {'x'.join(map(str, shape))}, {precision}"
                look = partial(attention_row, name, backend, shape, dtype, bound, device)
                yield from guarded(name, look)
    yield DeviceRow("shapes", "batch x heads x queries x keys x channels of a head", "", MEASURED)


def attention_row(
    name: str,
    backend: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    bound: float,
    device: torch.device,
) -> Iterator[DeviceRow]:
    error = attention_error(backend, shape, dtype, device)
    seconds = attention_seconds(backend, shape, dtype, device)
    # Two products forward, five backward, of which each is 2 B H L M d.
    rate = 7 * 2 * prod(shape) / seconds / 1e12
    yield held_to(
        name,
        f"{seconds * 1e3:.3f} ms forward and backward, {rate:.4g} TFLOP/s; relative error",
        error,
        bound,
        seconds=seconds,
        tflop_per_s=rate,
    )


def queries_keys_values(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    batch, heads, queries, keys, width = shape
    random = torch.Generator().manual_seed(0)
    found = []
    for length in (queries, keys, keys):
        drawn = torch.randn(batch, heads, length, width, generator=random)
        found.append(drawn.to(device, dtype).requires_grad_())
    return found


def attention_error(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> float:
    """The largest relative error of output and gradients, on the first sample and two heads."""
    few = (1, min(shape[1], 2), *shape[2:])
    given = queries_keys_values(few, dtype, device)
    wide = [value.detach().double().requires_grad_() for value in given]
    (q, k, v), expected = given, plain_attention(*wide)
    out = attend(q, k, v, backend)
    out.double().sum().backward()
    expected.sum().backward()
    pairs = [(out, expected)]
    pairs += [(mine.grad, theirs.grad) for mine, theirs in zip(given, wide, strict=True)]  # type: ignore[misc]
    scale = max(float(theirs.norm()) for _, theirs in pairs[1:])
    out, expected = out.detach(), expected.detach()
    errors = [float((out.double() - expected).norm() / expected.norm())]
    # Gradients by the largest of the three: that of the keys nearly cancels.
    errors += [float((mine.double() - theirs).norm()) / scale for mine, theirs in pairs[1:]]
    return max(errors)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, as written."""
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v


def attention_seconds(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> float:
    given = queries_keys_values(shape, dtype, device)

    def both_ways() -> None:
        q, k, v = given
        attend(q, k, v, backend).backward(q.detach())

    return seconds_of(both_ways, device)
