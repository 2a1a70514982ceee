"""One unit of work: some samples of a source become one Parquet file and a note beside it.

    DST/part-00003.parquet           appears when it is whole
    DST/.progress/part-00003.json    what it holds: a run that goes on leaves it out

The same functions run in this process and in Ray's workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from sid_ray.data.columns import arrow_schema
from sid_ray.data.encode import encode_pixels, encode_prompts
from sid_ray.data.latent_files import read_moments
from sid_ray.data.layout import Unit, Work
from sid_ray.data.pixels import prepare_picture
from sid_ray.data.progress import FileReport, check_wanted, note_name
from sid_ray.data.samples import Samples
from sid_ray.errors import UserError
from sid_ray.storage.errors import retrying

STORE_PATIENCE_S = 120.0


class CountingFile:
    """Passes on what is written; knows its length and sha256."""

    def __init__(self, stream: Any):
        self.stream, self.size, self.digest, self.closed = stream, 0, hashlib.sha256(), False

    def write(self, data: Any) -> int:
        data = bytes(data)
        self.digest.update(data)
        self.size += len(data)
        self.stream.write(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        pass

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Prepared(NamedTuple):
    """One sample: what is stored, and its pixels where an encoder or the statistics need them."""

    stored: Any
    pixels: np.ndarray | None = None


def build_patiently(unit: Unit, work: Work) -> FileReport:
    """``build``, again while the storage cannot be reached, for some time."""
    return retrying(lambda: build_unit(unit, work), give_up_s=STORE_PATIENCE_S)


def build_unit(unit: Unit, work: Work) -> FileReport:
    """Makes a unit's file and its note. Raises UserError that names a sample, StoreError."""
    import pyarrow.parquet as pq

    schema = arrow_schema(work.columns, work.shape, work.text_shape)
    totals = Totals(work.shape[0] if work.shape else 0)
    with work.destination.writing(unit.file_name) as stream:
        file = CountingFile(stream)
        with pq.ParquetWriter(
            file,
            schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["label"] if "label" in work.columns else False,
        ) as writer:
            for part, prepared in groups(unit, work):
                writer.write_table(arrow_table_of(part, prepared, work, schema, totals))
        check_wanted(work)
    report = FileReport(
        work.plan,
        unit.index,
        unit.file_name,
        file.size,
        file.digest.hexdigest(),
        unit.row_groups,
        tuple(totals.sums),
        tuple(totals.squares),
        totals.values,
    )
    work.destination.write(note_name(unit.index), report.to_json())
    return report


def groups(unit: Unit, work: Work) -> Iterator[tuple[Samples, list[Prepared]]]:
    """Row group after row group; with threads, the next one is read while one is encoded."""
    parts, start = [], 0
    for rows in unit.row_groups:
        parts.append(unit.samples.part(start, start + rows))
        start += rows
    if work.threads <= 1:
        for part in parts:
            yield part, [prepare_sample(part, index, work) for index in range(part.count)]
        return
    with ThreadPoolExecutor(work.threads) as pool:

        def submit(part: Samples) -> list[Future[Prepared]]:
            return [pool.submit(prepare_sample, part, index, work) for index in range(part.count)]

        try:
            ahead = submit(parts[0])
            for place, part in enumerate(parts):
                waiting, ahead = ahead, submit(parts[place + 1]) if parts[place + 1 :] else []
                yield part, [future.result() for future in waiting]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def prepare_sample(part: Samples, index: int, work: Work) -> Prepared:
    """One sample, read and checked. Raises UserError that names it."""
    if part.reader is None:
        return Prepared(None)
    data = part.read(index)
    try:
        if work.rules is not None:
            return Prepared(*prepare_picture(data, work.rules))
        assert isinstance(data, bytes)
        moments = read_moments(data)
        expected = (2 * work.shape[0], *work.shape[1:])
        if moments.shape != expected:
            raise UserError(
                f"shape {list(moments.shape)}, {list(expected)} is expected as in the first"
            )
        return Prepared(moments)
    except UserError as error:
        raise part.wrong(index, str(error)) from None


def arrow_table_of(
    part: Samples, prepared: list[Prepared], work: Work, schema: Any, totals: Totals
) -> Any:
    """A row group as an Arrow table; its numbers go to ``totals``."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "label": part.labels,
        "prompt": part.prompts,
        "name": part.names,
    }
    if work.kind == "images":
        totals.add_pixels(
            np.stack([found.pixels for found in prepared if found.pixels is not None])
        )
        columns["image"] = [found.stored for found in prepared]
    if work.kind == "latents":
        moments = latents_of(part, prepared, work)
        totals.add_latents(moments)
        flat = pa.array(moments.reshape(-1), pa.float16())
        columns["latent"] = pa.FixedSizeListArray.from_arrays(flat, moments[0].size)
    if work.text is not None:
        assert part.prompts is not None
        text = encode_prompts(work.text, part.prompts, work.device)
        flat = pa.array(text.reshape(-1), pa.float16())
        columns["text"] = pa.FixedSizeListArray.from_arrays(flat, text.shape[1])
    arrays = [
        column.cast(schema.field(name).type)
        if isinstance(column := columns[name], pa.Array)
        else pa.array(column, schema.field(name).type)
        for name in schema.names
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def latents_of(part: Samples, prepared: list[Prepared], work: Work) -> np.ndarray:
    """[N, 2C, h, w] float16, from files or from the encoder."""
    if work.vae is None:
        return np.stack([found.stored for found in prepared])
    try:
        return encode_pixels(work.vae, pixels_of(prepared), work.device)
    except UserError as error:
        raise part.wrong(0, f"or one of the {part.count - 1} behind it: {error}") from None


def pixels_of(prepared: list[Prepared]) -> np.ndarray:
    """[N, H, W, C] uint8."""
    return np.stack([found.pixels for found in prepared if found.pixels is not None])


class Totals:
    """Sums over samples; exact for pixels, in double precision for latents."""

    def __init__(self, channels: int):
        self.sums: list[float] = [0] * channels
        self.squares: list[float] = [0] * channels
        self.values = 0

    def add_pixels(self, pixels: np.ndarray) -> None:
        """[N, H, W, C] uint8."""
        for channel in range(pixels.shape[3]):
            counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
            levels = range(256)
            self.sums[channel] += sum(int(counts[v]) * v for v in levels)
            self.squares[channel] += sum(int(counts[v]) * v * v for v in levels)
        self.values += pixels[..., 0].size

    def add_latents(self, moments: np.ndarray) -> None:
        """[N, 2C, h, w]: of the means, which are the first half."""
        for channel in range(moments.shape[1] // 2):
            values = moments[:, channel].astype(np.float64)
            self.sums[channel] += float(values.sum())
            self.squares[channel] += float((values**2).sum())
        self.values += moments[:, 0].size
