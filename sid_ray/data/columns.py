"""The Arrow types of a prepared set's columns."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any


def arrow_schema(
    columns: Sequence[str], shape: Sequence[int], text_shape: Sequence[int] = ()
) -> Any:
    """The schema of every Parquet file of a set. ``shape`` (C, h, w), ``text_shape`` (T, D)."""
    import pyarrow as pa

    half = pa.float16()
    types = {
        "image": pa.binary(),
        "label": pa.int64(),
        "prompt": pa.string(),
        "name": pa.string(),
    }
    if "latent" in columns:
        types["latent"] = pa.list_(half, 2 * prod(shape))
    if "text" in columns:
        types["text"] = pa.list_(half, prod(text_shape))
    return pa.schema([pa.field(name, types[name], nullable=False) for name in columns])
