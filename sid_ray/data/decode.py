"""From columns of row groups to samples in the order that training asks for.

Symbols
    B, C, H, W   samples, channels, height, width       T, D   tokens of a prompt, their width
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sid_ray.data.manifest import DataManifest
from sid_ray.data.order import Located
from sid_ray.data.row_groups import DamagedDataError

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

    def take(self, index: np.ndarray) -> Decoded:
        """These samples, in this order."""
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
    parts: dict[str, np.ndarray] = {}
    groups, places = np.unique(located.row_group, return_inverse=True)
    for column in columns:
        found = _empty(column, len(places), manifest)
        for number, group in enumerate(groups.tolist()):
            chosen = np.nonzero(places == number)[0]
            rows = located.row[chosen]
            try:
                found[chosen] = _READERS[column](tables[group].column(column), rows, manifest)
            except _DamagedRowError as error:
                what = f"{where(group, error.row)}: {error}: prepare the set again"
                raise DamagedDataError(what) from None
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


def _images(column: Any, rows: np.ndarray, manifest: DataManifest) -> np.ndarray:
    from PIL import Image

    channels, height, width = manifest.shape
    found = np.empty((len(rows), height, width, channels), np.uint8)
    expected = (height, width) if channels == 1 else (height, width, channels)
    for place, row in enumerate(rows.tolist()):
        try:
            with Image.open(io.BytesIO(column[row].as_buffer())) as image:
                pixels = np.asarray(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise _DamagedRowError(row, f"not a whole image ({error})") from None
        if pixels.shape != expected or pixels.dtype != np.uint8:
            raise _DamagedRowError(
                row, f"an image of shape {list(pixels.shape)}, expected {list(expected)}"
            )
        found[place] = pixels.reshape(height, width, channels)
    return found.transpose(0, 3, 1, 2)


def _numbers(column: Any, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of a column of fixed-size lists, without a Python object a row."""
    size = int(np.prod(shape))
    if getattr(column.type, "list_size", -1) != size:
        raise _DamagedRowError(int(rows[0]), f"{column.type}, expected lists of {size}")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(-1, *shape)[rows]


def _latents(column: Any, rows: np.ndarray, manifest: DataManifest) -> np.ndarray:
    channels, height, width = manifest.shape
    return _numbers(column, rows, (2 * channels, height, width))


def _text(column: Any, rows: np.ndarray, manifest: DataManifest) -> np.ndarray:
    assert manifest.text is not None
    return _numbers(column, rows, manifest.text.shape)


def _labels(column: Any, rows: np.ndarray, manifest: DataManifest) -> np.ndarray:
    labels = column.combine_chunks().to_numpy(zero_copy_only=False)[rows]
    wrong = (labels < 0) | (labels >= manifest.label_dim)
    if wrong.any():
        first = int(wrong.argmax())
        raise _DamagedRowError(
            int(rows[first]), f"label {labels[first]} of {manifest.label_dim} classes"
        )
    return labels


def _prompts(column: Any, rows: np.ndarray, manifest: DataManifest) -> np.ndarray:
    return np.array([column[row].as_py() for row in rows.tolist()], object)


_READERS: dict[str, Callable[[Any, np.ndarray, DataManifest], np.ndarray]] = {
    "image": _images,
    "latent": _latents,
    "label": _labels,
    "prompt": _prompts,
    "text": _text,
}
