"""How fast a prepared set is read, against pyarrow's own scan and torch's DataLoader: three tables.

    python -m benchmarks.data [--folder DIR] [--repeats 5] [--s3] [--seconds 60]

The data is made up: latents like an ImageNet-512 VAE's (8x64x64 float16), PNGs of 32 and 64 pixels.
Reader and rival run in turns over the same files, which the page cache holds; medians.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from sid_ray.config.sections import DataConfig
from sid_ray.data.decode import Decoded, gather, stored_bytes
from sid_ray.data.manifest import read_manifest
from sid_ray.data.order import Order
from sid_ray.data.prepared import Reading, open_prepared
from sid_ray.data.reader import StreamReader
from sid_ray.data.row_groups import RowGroups
from sid_ray.diffusion.rng import FAKE_SCORE
from sid_ray.groups import GroupPlan
from sid_ray.storage.store import Store
from sid_ray.types import Pick
from tests.support.data_writer import layout, write_set
from tests.support.s3_server import s3_server

LATENTS, PICTURES = 2048, 8192
WAITED = 16_384  # latents that are waited for: 1 GiB ...
WAITED_ROWS, WAITED_GIB = 32, 0.625  # ... of which a worker keeps less: it must read on and on
XS_IMAGES_S = 373  # what one H100 trains of EDM2-XS with SiDA


class SomeNumbers:
    """A uniform field that is smooth enough for PNG to shrink, as pictures are."""

    def __init__(self, size: int):
        self.size, self.rng = size, np.random.default_rng(0)

    def pictures(self, count: int) -> np.ndarray:
        coarse = self.rng.integers(0, 256, (count, 3, self.size // 8, self.size // 8))
        smooth = coarse.repeat(8, 2).repeat(8, 3) + self.rng.integers(0, 24, (count, 3, 1, 1))
        noise = self.rng.integers(0, 16, (count, 3, self.size, self.size))
        return (smooth + noise).clip(0, 255).astype(np.uint8)


def make_latents(store: Store, count: int, rows: int) -> None:
    bits = np.random.default_rng(0).integers(0, 2**14, (count, 8, 64, 64), np.uint16)
    labels = np.arange(count) % 1000
    shards = layout(count, rows, 16)
    write_set(store, "latents", shards, 1000, latent=bits.view(np.float16), label=labels)


def make_pictures(store: Store, size: int) -> None:
    images = SomeNumbers(size).pictures(PICTURES)
    labels = np.arange(PICTURES) % 10
    write_set(store, "images", layout(PICTURES, 512, 4), 10, image=images, label=labels)


def make_zip(store: Store, path: Path) -> None:
    """EDM's form: a stored zip of the same PNGs."""
    rows = RowGroups(store, read_manifest(store))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for group in range(len(rows.rows)):
            column = rows.read(group, ("image",)).column("image")
            for row in range(len(column)):
                archive.writestr(f"{group:05d}/img{row:08d}.png", column[row].as_py())


# What is measured ---------------------------------------------------------------------------------


def scan(store: Store, columns: tuple[str, ...]) -> int:
    """pyarrow alone: every row group of every file, in order. Bytes."""
    total = 0
    for shard in read_manifest(store).shards:
        file = pq.ParquetFile(store.path(shard.name))
        for index in range(file.num_row_groups):
            total += file.read_row_group(index, columns=list(columns), use_threads=False).nbytes
    return total


def bytes_alone(tables, located) -> Decoded:
    """What the reader does before decoding: finds each sample's stored bytes in its row group."""
    size = 0
    for group in np.unique(located.row_group).tolist():
        rows = located.row[located.row_group == group]
        size += sum(map(len, stored_bytes(tables[group].column("image"), rows)))
    return Decoded(label=np.full(len(located.row), size))


def read(store: Store, columns: tuple[str, ...], batch: int, decoded: bool = True) -> int:
    """The reader over one epoch, as training would. Images."""
    manifest = read_manifest(store)
    rows = RowGroups(store, manifest)
    plan = GroupPlan(batch, 32, 32, 1)
    order = Order(manifest.row_groups, 32, plan.num_groups, 4, 0, 1)
    put = partial(gather, columns=columns, manifest=manifest, where=rows.where)
    with_gather = (lambda tables, at: put(tables, at)) if decoded else bytes_alone
    end = manifest.count // batch * batch
    reader = StreamReader(rows, order, columns, with_gather, plan, until=end)
    for images_seen in range(0, end, batch):
        reader.samples(images_seen, np.arange(images_seen, images_seen + batch))
    reader.close()
    rows.close()
    return end


class EDMZip(torch.utils.data.Dataset):
    """PNGs out of a stored zip, as float images: what EDM's own training reads."""

    def __init__(self, path: Path):
        self.path, self._archive = path, None
        with zipfile.ZipFile(path) as archive:
            self.names = [name for name in archive.namelist() if name.endswith(".png")]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._archive is None:  # each process opens its own
            self._archive = zipfile.ZipFile(self.path)
        with self._archive.open(self.names[index]) as file:
            image = np.asarray(Image.open(io.BytesIO(file.read())))
        return image.transpose(2, 0, 1).copy()


def load(path: Path, batch: int, workers: int) -> int:
    """torch's DataLoader over one shuffled epoch, its start included. Images."""
    loader = torch.utils.data.DataLoader(
        EDMZip(path), batch, shuffle=True, num_workers=workers, drop_last=True
    )
    return sum(len(images) for images in loader)


def timed(what: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    done = what()
    return time.perf_counter() - began, done


def in_turns(rivals: dict[str, Callable[[], int]], repeats: int) -> dict[str, tuple[float, int]]:
    """Median seconds and what was done, of each; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    done = {}
    for round_ in range(repeats + 1):
        for name, what in rivals.items():
            spent, done[name] = timed(what)
            if round_:
                seconds[name].append(spent)
    return {name: (statistics.median(found), done[name]) for name, found in seconds.items()}


# Tables -------------------------------------------------------------------------------------------


def table_of_scans(stores: dict[str, Store], repeats: int) -> None:
    print(f"Reader against pyarrow's scan of the same files; medians of {repeats}, in turns.\n")
    print("| set | what | images/s | MiB/s | share of the scan |")
    print("|---|---|---:|---:|---:|")
    for name, store in stores.items():
        column, batch = ("latent", 128) if "latent" in name else ("image", 512)
        columns = (column, "label")
        rivals = {"pyarrow's scan": partial(scan, store, columns)}
        if column == "image":
            rivals["reader, bytes"] = partial(read, store, ("image",), batch, False)
        rivals["reader, decoded"] = partial(read, store, columns, batch)
        found = in_turns(rivals, repeats)
        base, size = found["pyarrow's scan"]
        count = read_manifest(store).count
        for what, (spent, done) in found.items():
            part = 1.0 if "scan" in what else done / count
            rate = size * part / spent / 2**20
            share = rate / (size / base / 2**20)
            print(f"| {name} | {what} | {count * part / spent:,.0f} | {rate:,.0f} | {share:.2f} |")


def table_of_loaders(stores: dict[str, Store], folder: Path, repeats: int) -> None:
    print("\nReader against torch's DataLoader over a zip of the same PNGs, both decoded.\n")
    print("| set | what | images/s | of num_workers 0 |")
    print("|---|---|---:|---:|")
    for name, store in stores.items():
        if "latent" in name:
            continue
        path = folder / f"{store.name}.zip"
        make_zip(store, path)
        rivals = {
            "DataLoader, num_workers 0": partial(load, path, 512, 0),
            "DataLoader, num_workers 1": partial(load, path, 512, 1),
            "reader": partial(read, store, ("image", "label"), 512),
        }
        found = in_turns(rivals, repeats)
        rates = {what: done / spent for what, (spent, done) in found.items()}
        for what, rate in rates.items():
            share = rate / rates["DataLoader, num_workers 0"]
            print(f"| {name} | {what} | {rate:,.0f} | {share:.2f} |")


def stalls(store: Store, group: int, seconds: float) -> list[float]:
    """Seconds that each step waits for its data, at EDM2-XS's rate."""
    plan = GroupPlan(2048, group, group, 1)
    data = DataConfig(name="prepared", source=store.url)
    reading = Reading(plan, pixels=True, cache_gib=WAITED_GIB)
    source = open_prepared(data, (4, 64, 64), reading=reading)
    found, images_seen, began = [], 0, time.monotonic()
    while time.monotonic() - began < seconds:
        waited = time.monotonic()
        source.wait(images_seen)
        found.append(time.monotonic() - waited)
        for first in range(images_seen, images_seen + 2048, group):
            start = time.monotonic()
            positions = torch.arange(first, first + group)
            source.batch(Pick(torch.rand(group), positions, FAKE_SCORE, images_seen))
            # The GPU works meanwhile: what the pass has left of its time.
            time.sleep(max(0.0, group / XS_IMAGES_S - (time.monotonic() - start)))
        images_seen += 2048
    source.close()
    return found


def table_of_stalls(places: dict[str, Store], seconds: float) -> None:
    print(
        f"\nWaiting for 2,048 latents a step at {XS_IMAGES_S} images/s, for {seconds:.0f} s: a set "
        f"of 1 GiB, of which {WAITED_GIB} GiB are kept.\n"
    )
    print("| from | group | steps | first step waits, s | all others, s |")
    print("|---|---:|---:|---:|---:|")
    for name, store in places.items():
        for group in (64, 32):
            found = stalls(store, group, seconds)
            print(f"| {name} | {group} | {len(found)} | {found[0]:.2f} | {sum(found[1:]):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="for the data; a temporary one by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60, help="of each row of waiting; 0: none")
    parser.add_argument("--s3", action="store_true", help="wait for data in S3 too (SeaweedFS)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        stores = {
            "latents 4x64x64": Store.at(folder / "latents"),
            "PNG 32x32": Store.at(folder / "png32"),
            "PNG 64x64": Store.at(folder / "png64"),
        }
        make_latents(stores["latents 4x64x64"], LATENTS, 64)
        make_pictures(stores["PNG 32x32"], 32)
        make_pictures(stores["PNG 64x64"], 64)
        if args.repeats:
            table_of_scans(stores, args.repeats)
            table_of_loaders(stores, folder, args.repeats)
        if args.seconds:
            measure_stalls(folder, args.seconds, args.s3)


def measure_stalls(folder: Path, seconds: float, with_s3: bool) -> None:
    places = {"local disk": Store.at(folder / "waited")}
    make_latents(places["local disk"], WAITED, WAITED_ROWS)
    if not with_s3:
        table_of_stalls(places, seconds)
        return
    with s3_server(folder / "s3") as server:
        os.environ.update(server.environment)
        places["S3"] = Store.at(f"{server.make_bucket('data')}/latents")
        for path in sorted(places["local disk"].folder.iterdir()):
            places["S3"].put(path, path.name)
        table_of_stalls(places, seconds)


if __name__ == "__main__":
    main()
