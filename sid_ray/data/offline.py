"""Data sets that are on the machine: digits and emoji of the packages, Fashion-MNIST of Debian.

Fashion-MNIST: 70,000 28x28 grey pictures of clothes in 10 classes. Source: H. Xiao, K. Rasul,
R. Vollgraf, 2017, https://github.com/zalandoresearch/fashion-mnist, MIT licence.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sid_ray.data.samples import Samples
from sid_ray.errors import UserError
from sid_ray.storage.places import expanded

FASHION = "fashion-mnist"
FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_COUNT = {"train": 60_000, "test": 10_000}
PREFIX = {"train": "train", "test": "t10k"}
IMAGE_MAGIC, LABEL_MAGIC, SIZE = 2051, 2049, 28


class Offline(NamedTuple):
    """``pixels`` [N, H, W, C] uint8, ``labels`` [N]."""

    pixels: np.ndarray
    labels: list[int]
    prompts: list[str] | None
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class OfflineReader:
    """Pixels by the sample's number."""

    name: str
    folder: str
    split: str

    def read(self, name: str, place: Any) -> np.ndarray:
        return load_offline(self.name, self.folder, self.split).pixels[place]


def offline_samples(source: str, split: str) -> Samples:
    """Samples of a set by its name. Raises UserError where its files are missing or damaged."""
    name, _, place = source.partition(":")
    if name != FASHION and split:
        raise UserError(f"--split {split}: {name} has no parts: leave it out")
    split = split or "train"
    if split not in PREFIX:
        raise UserError(f"--split {split}: {name} has {' and '.join(PREFIX)}")
    if place and name != FASHION:
        raise UserError(f"{source}: only {FASHION} takes a folder; {name} comes with the package")
    folder = str(expanded(place or FASHION_FOLDER).absolute()) if name == FASHION else ""
    found = load_offline(name, folder, split)
    digest = hashlib.sha256(found.pixels.tobytes()).hexdigest()
    count = len(found.pixels)
    return Samples(
        kind="images",
        source=f"{source} ({split})" if name == FASHION else source,
        count=count,
        reader=OfflineReader(name, folder, split),
        places=range(count),
        labels=found.labels,
        prompts=found.prompts,
        label_dim=len(found.class_names),
        class_names=found.class_names,
        notes={"set": name, "pixels_sha256": digest}
        | ({"split": split} if name == FASHION else {}),
    )


@cache
def load_offline(name: str, folder: str, split: str) -> Offline:
    if name == FASHION:
        return load_fashion(Path(folder), split)
    if name == "digits":
        from sid_ray.data.digits import load_digits

        images, classes = load_digits()
        return Offline(to_pixels(images), classes.tolist(), None, tuple("0123456789"))
    from sid_ray.data.emoji import load_emoji

    found = load_emoji()
    return Offline(
        to_pixels(found.images),
        found.categories.tolist(),
        list(found.captions),
        found.category_names,
    )


def to_pixels(images: Any) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] -> [N, H, W, C] uint8, the nearest of 256 levels."""
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def load_fashion(folder: Path, split: str) -> Offline:
    count = FASHION_COUNT[split]
    head = struct.pack(">4i", IMAGE_MAGIC, count, SIZE, SIZE)
    pixels = read_idx(folder / f"{PREFIX[split]}-images-idx3-ubyte.gz", head, count * SIZE**2)
    head = struct.pack(">2i", LABEL_MAGIC, count)
    labels = read_idx(folder / f"{PREFIX[split]}-labels-idx1-ubyte.gz", head, count)
    if labels.max() >= len(FASHION_CLASSES):
        row = int((labels >= len(FASHION_CLASSES)).argmax())
        raise UserError(
            f"{folder}: the label of sample {row} is {labels[row]}, expected 0 to "
            f"{len(FASHION_CLASSES) - 1}: install dataset-fashion-mnist again"
        )
    images = pixels.reshape(count, SIZE, SIZE, 1)
    return Offline(images, labels.tolist(), None, FASHION_CLASSES)


def read_idx(path: Path, head: bytes, count: int) -> np.ndarray:
    """[count] bytes behind a header, from a .gz file that must hold exactly these."""
    try:
        with gzip.open(path) as file:
            data = file.read(len(head) + count + 1)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: apt install dataset-fashion-mnist, or name the folder of its "
            f"four .gz files: {FASHION}:FOLDER"
        ) from None
    except Exception as error:  # gzip raises many kinds for a damaged file
        raise UserError(f"{path} is damaged ({error}): fetch it again") from None
    if not data.startswith(head):
        found = struct.unpack(f">{len(head) // 4}i", data[: len(head)].ljust(len(head), b"\0"))
        expected = struct.unpack(f">{len(head) // 4}i", head)
        raise UserError(f"{path}: begins with {list(found)}, expected {list(expected)}")
    if len(data) != len(head) + count:
        what = "more" if len(data) > len(head) + count else "less"
        raise UserError(f"{path}: {what} than the {count:,} values that it announces")
    return np.frombuffer(data, np.uint8, offset=len(head))
