"""From columns of row groups to samples in the order that training asks for.

Symbols
    B, C, H, W   samples, channels, height, width       T, D   tokens of a prompt, their width
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sid_ray.data.manifest import DataManifest
from sid_ray.data.order import Located
from sid_ray.data.row_groups import DamagedDataError
from sid_ray.data.samples import short_error

Where = Callable[[int, int], str]  # (row group, row) -> its place, for a person


class Decoded(NamedTuple):
    """What a set stores of some samples; None for what was not asked for.

    ``image`` [B, C, H, W] uint8, ``latent`` [B, 2C, h, w] float16 mean and deviation, ``label``
    [B] int64, ``prompt`` [B] strings, ``text`` [B, T, D] float16.
    """

    image: np.ndarray | None = None
    latent: np.ndarray | None = None
    label: np.ndarray | None = None
    prompt: np.ndarray | None = None
    text: np.ndarray | None = None

    def take(self, index: np.ndarray | slice) -> Decoded:
        """These samples, in this order; a slice is a view."""
        return Decoded(*(None if part is None else part[index] for part in self))


def gather(
    tables: Mapping[int, Any],
    located: Located,
    columns: Sequence[str],
    manifest: DataManifest,
    where: Where,
    mirrored: np.ndarray | None = None,
) -> Decoded:
    """The samples at these rows [B] of row groups.

    ``mirrored`` [B] bool: images to flip left to right. Raises DamagedDataError that names file,
    row group and row.
    """

    def damaged(row_group: int, row: int, what: str) -> DamagedDataError:
        return DamagedDataError(f"{where(row_group, row)}: {what}: prepare the set again")

    parts: dict[str, np.ndarray] = {}
    groups, places = np.unique(located.row_group, return_inverse=True)
    for column in columns:
        found = _empty(column, len(places), manifest)
        for number, group in enumerate(groups.tolist()):
            chosen = np.nonzero(places == number)[0]
            rows = located.row[chosen]
            try:
                _READERS[column](tables[group].column(column), rows, found, chosen)
            except _DamagedRowError as error:
                raise damaged(group, error.row, str(error)) from None
        if column == "label":
            wrong = np.nonzero((found < 0) | (found >= manifest.label_dim))[0]
            if len(wrong):
                group, row = (int(part[wrong[0]]) for part in located)
                what = f"label {found[wrong[0]]} of {manifest.label_dim} classes"
                raise damaged(group, row, what)
        parts[column] = found
    if mirrored is not None and "image" in parts:
        parts["image"][mirrored] = parts["image"][mirrored, :, :, ::-1]
    return Decoded(**parts)


class _DamagedRowError(Exception):
    def __init__(self, row: int, text: str):
        super().__init__(text)
        self.row = row


def _empty(column: str, count: int, manifest: DataManifest) -> np.ndarray:
    if column == "image":
        return np.empty((count, *manifest.shape), np.uint8)
    if column == "latent":
        channels, height, width = manifest.shape
        return np.empty((count, 2 * channels, height, width), np.float16)
    if column == "text":
        assert manifest.text is not None
        return np.empty((count, *manifest.text.shape), np.float16)
    return np.empty(count, np.int64 if column == "label" else object)


def _whole(column: Any) -> Any:
    """A column as one array; without a copy where it is one."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def stored_bytes(column: Any, rows: np.ndarray) -> list[memoryview]:
    """The rows' bytes in the column's own buffer: no copy, no Arrow object a row."""
    whole = _whole(column)
    _, ends, data = whole.buffers()
    kind = np.int64 if "large" in str(whole.type) else np.int32
    ends = np.frombuffer(ends, kind)[whole.offset :]
    values, begins, ends = memoryview(data or b""), ends[rows].tolist(), ends[rows + 1].tolist()
    return [values[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _images(column: Any, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
    from PIL import Image

    channels, height, width = out.shape[1:]
    expected = (height, width) if channels == 1 else (height, width, channels)
    stored = stored_bytes(column, rows)
    for place, row, data in zip(places.tolist(), rows.tolist(), stored, strict=True):
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                pixels = np.asarray(image)
        except Exception as error:  # decoders raise many kinds
            what = re.sub(r" <.*>", "", short_error(error))
            raise _DamagedRowError(row, f"not a whole PNG image ({what})") from None
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise _DamagedRowError(
                row, f"an image of shape {list(pixels.shape)}, expected {list(expected)}"
            )
        out[place] = pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _numbers(column: Any, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
    """Rows of a column of fixed-size lists: one copy each, no Python number."""
    size = out[0].size
    if getattr(column.type, "list_size", -1) != size:
        raise _DamagedRowError(int(rows[0]), f"{column.type}, expected lists of {size}")
    whole = _whole(column)
    flat = whole.values.to_numpy(zero_copy_only=True).reshape(-1, *out.shape[1:])[whole.offset :]
    for place, row in zip(places.tolist(), rows.tolist(), strict=True):
        out[place] = flat[row]


def _labels(column: Any, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
    out[places] = _whole(column).to_numpy(zero_copy_only=False)[rows]


def _prompts(column: Any, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
    stored = stored_bytes(column, rows)
    for place, row, data in zip(places.tolist(), rows.tolist(), stored, strict=True):
        try:
            out[place] = str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise _DamagedRowError(row, f"a text that is not UTF-8 ({error})") from None


_READERS: dict[str, Callable[[Any, np.ndarray, np.ndarray, np.ndarray], None]] = {
    "image": _images,
    "latent": _numbers,
    "label": _labels,
    "prompt": _prompts,
    "text": _numbers,
}
