"""Small prepared sets, written as sid-ray data prepare writes them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sid_ray.data.manifest import COLUMNS, MANIFEST, DataManifest, Shard, TextEncoder
from sid_ray.storage.store import Store

Layout = Sequence[Sequence[int]]  # rows of each row group of each file


def layout(count: int, row_group: int, shard: int = 3) -> list[list[int]]:
    """Row groups of ``row_group`` rows, ``shard`` of them a file, until ``count``."""
    groups = [min(row_group, count - start) for start in range(0, count, row_group)]
    return [groups[start : start + shard] for start in range(0, len(groups), shard)]


def png(pixels: np.ndarray) -> bytes:
    """[C, H, W] uint8 -> a PNG."""
    stream = io.BytesIO()
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(image).save(stream, "png", compress_level=1)
    return stream.getvalue()


def fixed(values: np.ndarray) -> pa.Array:
    """[N, ...] float16 -> a column of fixed-size lists."""
    flat = np.ascontiguousarray(values, np.float16).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def arrow_column(name: str, values) -> pa.Array:
    if name == "image":
        return pa.array([v if isinstance(v, bytes) else png(v) for v in values], pa.binary())
    if name in ("latent", "text"):
        return fixed(values)
    return pa.array(list(map(int, values)) if name == "label" else list(values))


def write_set(
    store: Store,
    kind: str,
    rows: Layout,
    label_dim: int = 0,
    text_sha256: str = "",
    **columns,
) -> DataManifest:
    """Writes Parquet files and their manifest.

    Columns by their names: ``image`` [N, C, H, W] uint8 or a list of PNG bytes, ``latent``
    [N, 2C, h, w], ``label`` [N], ``prompt`` N strings, ``text`` [N, T, D].
    """
    names = tuple(name for name in COLUMNS if name in columns)
    shards, start = [], 0
    for number, groups in enumerate(rows):
        name, sink = f"part-{number:05d}.parquet", io.BytesIO()
        part = slice(start, start + sum(groups))
        table = pa.table({column: arrow_column(column, columns[column][part]) for column in names})
        options = {"compression": "none", "use_dictionary": False}
        with pq.ParquetWriter(sink, table.schema, **options) as writer:
            for size in groups:
                writer.write_table(table.slice(start - part.start, size))
                start += size
        data = sink.getvalue()
        store.write(name, data)
        shards.append(Shard(name, len(data), hashlib.sha256(data).hexdigest(), tuple(groups)))
    shape: tuple[int, ...] = ()
    if "latent" in columns:
        doubled, *rest = np.shape(columns["latent"])[1:]
        shape = (doubled // 2, *rest)
    elif "image" in columns:
        shape = np.asarray(
            Image.open(io.BytesIO(arrow_column("image", columns["image"][:1])[0].as_py()))
        ).shape
        shape = (1, *shape) if len(shape) == 2 else (shape[2], *shape[:2])
    labels = np.asarray(columns.get("label", ()), np.int64)
    in_range = labels[(labels >= 0) & (labels < label_dim)]
    counts = np.bincount(in_range, minlength=label_dim) if label_dim else ()
    if label_dim:
        counts[0] += start - len(in_range)
    manifest = DataManifest(
        kind=kind,
        count=start,
        shape=tuple(map(int, shape)),
        columns=names,
        shards=tuple(shards),
        label_dim=label_dim,
        class_counts=tuple(map(int, counts)),
        text=TextEncoder(text_sha256, np.shape(columns["text"])[1:]) if "text" in columns else None,
    )
    store.write(MANIFEST, manifest.to_json())
    return manifest


def numbered_images(count: int, shape: tuple[int, int, int] = (3, 8, 8)) -> np.ndarray:
    """[N, C, H, W] uint8 images; the first two values of the first row are the sample's number."""
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
    return images


def numbers_of(images: np.ndarray) -> np.ndarray:
    """The samples' numbers out of images [N, C, H, W] uint8."""
    return images[:, 0, 0, 0].astype(np.int64) * 256 + images[:, 0, 0, 1]
