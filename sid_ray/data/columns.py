"""Columns of Parquet files: the Arrow types of a prepared set's, and those of anybody's table."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from sid_ray.data.samples import short_error
from sid_ray.errors import UserError


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


def parquet_columns(data: bytes, where: str, wanted: Sequence[str]) -> tuple[list[str], Any]:
    """All names of a Parquet file's columns, and a table of those that are wanted and there.

    Raises UserError for a damaged file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        return names, file.read(columns=[name for name in names if name in wanted])
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise UserError(
            f"{where} is not a whole Parquet file ({short_error(error)}): fetch or make it again"
        ) from None
