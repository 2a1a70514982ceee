"""Safetensors files written one tensor at a time, and read a part at a time.

safetensors' own writer wants all tensors at once: a second whole copy of a network, on the rank
that writes what is sharded over all others.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def stream_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[Sequence[int], torch.dtype]],
    values: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Writes a safetensors file and returns its sha256.

    ``values`` come in the order of ``shapes``. Raises ValueError where they do not.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (shape, dtype) in shapes.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        table = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        header[name] = table
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in (struct.pack("<Q", len(text)), text):
            file.write(block)
            digest.update(block)
        written = 0
        for (name, (shape, dtype)), (found, value) in zip(shapes.items(), values, strict=True):
            if found != name or tuple(value.shape) != tuple(shape) or value.dtype != dtype:
                raise ValueError(f"{found}: {value.dtype} {tuple(value.shape)} is not {name}'s")
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(data)
            digest.update(data)
            written += len(data)
    assert written == end
    return digest.hexdigest()


def flat_slice(file: Any, name: str, offset: int, length: int) -> Tensor:
    """Elements offset : offset + length of a tensor, flattened, out of an open safetensors file.

    Reads the rows they lie in and no more.
    """
    part = file.get_slice(name)
    shape = part.get_shape()
    if not shape:
        return file.get_tensor(name).reshape(-1)[offset : offset + length]
    row = prod(shape[1:])
    first, last = offset // row, -(-(offset + length) // row)
    return part[first:last].reshape(-1)[offset - first * row :][:length]
