"""A prepared set against its manifest: what is damaged, in which file, row group and row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sid_ray.data.columns import arrow_schema
from sid_ray.data.manifest import MANIFEST, DataManifest, Shard, read_manifest
from sid_ray.data.options import MAX_PROMPT
from sid_ray.data.pixels import bits, open_picture
from sid_ray.data.samples import short_error
from sid_ray.errors import UserError
from sid_ray.storage.store import Store

AGAIN = "prepare the set again, or bring the file back"
CHUNK = 8 << 20


def check_set(store: Store, deep: bool = False) -> list[str]:
    """What is wrong with a prepared set, a line each; empty for nothing.

    Always: every file is there with its size, and its footer says the row groups and types of the
    manifest. ``deep`` reads everything: checksums, pictures, labels, latents. A row group at a time
    is in memory.
    """
    try:
        manifest = read_manifest(store)
        files = store.files()
    except (UserError, OSError) as error:
        return [str(error)]
    findings: list[str] = []
    counts = np.zeros(manifest.label_dim, np.int64)
    for shard in manifest.shards:
        findings += check_shard(store, shard, files, manifest, counts if deep else None)
    if deep and not findings and manifest.label_dim:
        found = counts.tolist()
        if found != list(manifest.class_counts):
            number = next(n for n, c in enumerate(manifest.class_counts) if found[n] != c)
            findings.append(
                f"{store}/{MANIFEST}: {manifest.class_counts[number]} samples of class {number}, "
                f"the files hold {found[number]}: {AGAIN}"
            )
    return findings


def check_shard(
    store: Store,
    shard: Shard,
    files: dict[str, int],
    manifest: DataManifest,
    counts: np.ndarray | None,
) -> list[str]:
    """Findings of one file; ``counts`` [label_dim] are added to where all is read."""
    import pyarrow.parquet as pq

    where = f"{store}/{shard.name}"
    if shard.name not in files:
        return [f"{where} is missing: {AGAIN}"]
    if files[shard.name] != shard.size:
        size = files[shard.name]
        return [f"{where}: {size:,} B, expected {shard.size:,}: cut or changed; {AGAIN}"]
    findings = []
    try:
        if counts is not None and sha256_of_column(store, shard.name) != shard.sha256:
            findings.append(f"{where}: its checksum is wrong, it was changed: {AGAIN}")
        with store.open(shard.name) as stream:
            file = pq.ParquetFile(stream)
            trouble = footer_trouble(file, shard, manifest)
            if trouble:
                return [*findings, f"{where}: {trouble}: {AGAIN}"]
            if counts is not None:
                for group in range(len(shard.row_groups)):
                    findings += check_group(file, group, where, manifest, counts)
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        findings.append(f"{where} cannot be read ({short_error(error)}): {AGAIN}")
    return findings


def sha256_of_column(store: Store, name: str) -> str:
    digest = hashlib.sha256()
    with store.open(name) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def footer_trouble(file: Any, shard: Shard, manifest: DataManifest) -> str:
    """How a footer differs from the manifest; '' for not at all."""
    footer = file.metadata
    rows = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
    if rows != shard.row_groups:
        return f"{len(rows)} row groups of {sum(rows)} rows, {shard.rows} rows are expected"
    text_shape = manifest.text.shape if manifest.text else ()
    expected = arrow_schema(manifest.columns, manifest.shape, text_shape)
    for field in expected:
        index = file.schema_arrow.get_field_index(field.name)
        found = file.schema_arrow.field(index).type if index >= 0 else "missing"
        if found != field.type:
            return f"column {field.name} is {found}, {field.type} is expected"
    return ""


def check_group(
    file: Any, group: int, where: str, manifest: DataManifest, counts: np.ndarray
) -> Iterator[str]:
    """Findings of one row group, one a column at most: its first bad row and how many more."""
    try:
        table = file.read_row_group(group, columns=list(manifest.columns))
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        yield f"{where}, row group {group} cannot be read ({short_error(error)}): {AGAIN}"
        return
    for name in manifest.columns:
        column = table[name].combine_chunks()
        bad = list(CHECKS[name](column, manifest))
        if bad:
            row, what = bad[0]
            more = f" (and {len(bad) - 1} more rows)" if len(bad) > 1 else ""
            yield f"{where}, row group {group}, row {row}: {name} {what}{more}: {AGAIN}"
        elif name == "label" and manifest.label_dim:
            counts += np.bincount(column.to_numpy(), minlength=manifest.label_dim)


Findings = Iterator[tuple[int, str]]  # row, what is wrong with it


def check_images(column: Any, manifest: DataManifest) -> Findings:
    channels, height, width = manifest.shape
    expected = (width, height, {1: "L", 3: "RGB"}.get(channels))
    for row, value in enumerate(column):
        data = value.as_py()
        try:
            if data is None:
                raise UserError("missing")
            picture = open_picture(data)
            found = (picture.width, picture.height, picture.mode)
            if picture.format != "PNG" or bits(data) != 8 or found != expected:
                raise UserError(f"is {picture.format} {found}, expected PNG {expected}")
        except UserError as error:
            yield row, str(error)


def check_labels(column: Any, manifest: DataManifest) -> Findings:
    for row, value in enumerate(column.to_pylist()):
        if value is None or not 0 <= value < max(manifest.label_dim, 1):
            yield row, f"is {value}, expected 0 to {manifest.label_dim - 1}"


def check_texts(column: Any, manifest: DataManifest) -> Findings:
    for row, value in enumerate(column.to_pylist()):
        if value is None or len(value) > MAX_PROMPT:
            yield row, "is missing" if value is None else "is too long"


def check_numbers(column: Any, manifest: DataManifest) -> Findings:
    """Rows of a fixed number of float16: none is missing, NaN or infinite."""
    if column.null_count or column.flatten().null_count:
        yield 0, "or one behind it is missing"
        return
    rows = column.flatten().to_numpy().reshape(len(column), -1)
    for row in np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist():
        yield row, "holds NaN or infinite numbers"


def check_latent_column(column: Any, manifest: DataManifest) -> Findings:
    found = list(check_numbers(column, manifest))
    yield from found
    if not found:
        rows = column.flatten().to_numpy().reshape(len(column), 2, -1)
        for row in np.flatnonzero((rows[:, 1] < 0).any(axis=1)).tolist():
            yield row, "has a negative standard deviation"


CHECKS: dict[str, Callable[[Any, DataManifest], Findings]] = {
    "image": check_images,
    "latent": check_latent_column,
    "label": check_labels,
    "prompt": check_texts,
    "text": check_numbers,
    "name": check_texts,
}
