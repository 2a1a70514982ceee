"""Small sources of every kind to damage, and what must come of it: a set, or one line."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sid_ray.data.check import check_set
from sid_ray.data.manifest import read_manifest
from sid_ray.data.options import PrepareOptions
from sid_ray.data.prepare import prepare_data
from sid_ray.data.prompts import read_prompts
from sid_ray.data.row_groups import RowGroups
from sid_ray.errors import UserError
from sid_ray.metrics.reference import read_statistics
from sid_ray.storage.store import Store
from tests.support.data_sources import edm_members, encoded, moments, npy, pixels, write_zip


@dataclass(frozen=True)
class Target:
    """One file of a folder that is copied, damaged and used."""

    folder: Path
    file: Path
    data: bytes
    use: Callable[[Path, Path], None]  # (the folder's copy, a destination)


def tried(target: Target, data: bytes, scratch: Path) -> str:
    """'prepared' or 'refused'. Raises whatever else comes of it, and for a line that is none."""
    folder, out = scratch / "in", scratch / "out"
    shutil.copytree(target.folder, folder)
    (folder / target.file).write_bytes(data)
    try:
        target.use(folder, out)
    except UserError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 2000, ascii(text)
        assert not out.exists()
        return "refused"
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(out, ignore_errors=True)
    return "prepared"


def prepare(source: Path, out: Path) -> None:
    prepare_data(PrepareOptions(str(source), str(out), workers=0))


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def parquet(path: Path, count: int = 4, **columns) -> Path:
    """Pictures as Hugging Face's datasets write them."""
    images = [{"bytes": encoded(x), "path": f"{n}.png"} for n, x in enumerate(pixels(count))]
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=3)
    return path


PICTURES = {
    "png": ("PNG", {}), "jpg": ("JPEG", {}), "webp": ("WEBP", {}), "gif": ("GIF", {}),
    "bmp": ("BMP", {}), "tif": ("TIFF", {"compression": "tiff_lzw"}), "avif": ("AVIF", {}),
    "ppm": ("PPM", {}),
}  # fmt: skip


def corpus(root: Path) -> dict[str, Target]:
    """By name; files are made below ``root``."""
    found: dict[str, Target] = {}

    def add(name: str, file: str, use: Callable[[Path, Path], None]) -> None:
        folder = root / name
        found[name] = Target(folder, Path(file), (folder / file).read_bytes(), use)

    def make(name: str) -> Path:
        (root / name).mkdir()
        return root / name

    def alone(file: str) -> Callable[[Path, Path], None]:
        return lambda folder, out: prepare(folder / file, out)

    members = edm_members(pixels(3), [0, 1, 1])
    write_zip(make("zip") / "a.zip", members, zipfile.ZIP_DEFLATED)
    add("zip", "a.zip", alone("a.zip"))
    shards = {}
    for number, image in enumerate(pixels(3)):
        shards |= {f"{number}.png": encoded(image), f"{number}.txt": b"a cat"}
        shards |= {f"{number}.cls": b"1", f"{number}.json": b'{"caption": "x"}'}
    tar(make("tar") / "a.tar", shards)
    add("tar", "a.tar", alone("a.tar"))
    parquet(make("parquet") / "a.parquet", text=["a"] * 4, label=[0, 1, 0, 1])
    add("parquet", "a.parquet", alone("a.parquet"))
    listed = [{"file_name": f"{n}.png", "text": "a cat", "label": "cat"} for n in range(3)]
    lists = {
        "metadata.jsonl": "\n".join(map(json.dumps, listed)).encode(),
        "metadata.csv": b"file_name,text,label\n0.png,a,1\n1.png,b,0\n2.png,c,1\n",
        "labels.csv": b"0.png,1\n1.png,0\n2.png,1\n",
        "dataset.json": json.dumps({"labels": [[f"{n}.png", n] for n in range(3)]}).encode(),
    }
    for file, data in lists.items():
        folder = make(file)
        for number, image in enumerate(pixels(3)):
            (folder / f"{number}.png").write_bytes(encoded(image))
        (folder / file).write_bytes(data)
        add(file, file, prepare)
    folder = make("metadata.parquet")
    (folder / "0.png").write_bytes(encoded(pixels(1)[0]))
    pq.write_table(pa.table({"file_name": ["0.png"], "text": ["x"]}), folder / "metadata.parquet")
    add("metadata.parquet", "metadata.parquet", prepare)
    for end, (form, options) in PICTURES.items():
        folder = make(end)
        (folder / f"a.{end}").write_bytes(encoded(pixels(1)[0], form, **options))
        (folder / "b.png").write_bytes(encoded(pixels(1)[0]))
        add(end, f"a.{end}", prepare)
    folder = make("npy")
    for number, values in enumerate(moments(2)):
        (folder / f"{number}.npy").write_bytes(npy(values))
    add("npy", "0.npy", prepare)
    (make("txt") / "p.txt").write_bytes("a cat\r\nein Käfer\n".encode())
    add("txt", "p.txt", alone("p.txt"))
    pq.write_table(pa.table({"caption": ["x", "y"]}), make("prompts") / "p.parquet")
    add("prompts", "p.parquet", lambda folder, out: drop(read_prompts(f"{folder}/p.parquet")))
    np.savez(make("npz") / "a.npz", mu=np.zeros(4), sigma=np.eye(4))
    add("npz", "a.npz", lambda folder, out: drop(read_statistics(folder / "a.npz")))
    prepare_data(PrepareOptions(str(root / "zip" / "a.zip"), str(root / "set"), workers=0))
    add("set", "part-00000.parquet", read_set)
    found["manifest"] = Target(
        root / "set", Path("manifest.json"), (root / "set" / "manifest.json").read_bytes(), read_set
    )
    return found


def drop(value: object) -> None:
    """What was read is not looked at."""


def read_set(folder: Path, out: Path) -> None:
    """All that reads a prepared set: the check says lines, the reader of training raises one."""
    from sid_ray.data.decode import gather
    from sid_ray.data.order import Located
    from sid_ray.data.sheet import draw_sheet

    store = Store.at(folder)
    assert all(isinstance(line, str) for line in check_set(store, deep=True))
    manifest = read_manifest(store)
    draw_sheet(store, manifest, folder / "sheet.png")
    groups = RowGroups(store, manifest)
    try:
        tables = {n: groups.read(n, manifest.columns) for n in range(len(manifest.row_groups))}
        located = Located(np.zeros(1, np.int64), np.zeros(1, np.int64))
        columns = [name for name in manifest.columns if name != "name"]  # nobody trains on it
        gather(tables, located, columns, manifest, groups.where)
    finally:
        groups.close()
