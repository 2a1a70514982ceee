"""Pictures that are there already, as an evaluation looks at them: in a folder, a zip or s3://.

Every picture is read once before anything else is done, so that one which is damaged or has another
size is told at once, and so that what was seen of them can be kept under their fingerprint.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sid_ray.data.archives import ZipReader, list_zip
from sid_ray.data.folders import SUFFIXES, FolderReader
from sid_ray.data.pixels import (
    GREY,
    MODES,
    PNG,
    RGB,
    ImageRules,
    check_png,
    open_picture,
    plain_picture,
)
from sid_ray.data.pixels import resized as cut_and_resized
from sid_ray.data.prompts import read_prompts
from sid_ray.data.samples import Samples, short_error
from sid_ray.data.sidecars import caption
from sid_ray.data.windows import Window
from sid_ray.denoisers.registry import network_folders
from sid_ray.errors import UserError
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path, scheme_of
from sid_ray.storage.store import Store
from sid_ray.storage.text_lines import text_of

RECORD = "generated.json"  # of sid-ray generate; see generate.py
SEED = re.compile(r"seed(\d{6,})\.png")
GRID = "grid.png"
NETWORKS = ("model.json", "run.json", "config.json", "model_index.json", "manifest.json")
NETWORK_FOLDERS = ("checkpoint_", "best_")
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112
THREADS, AT_ONCE = 8, 256
LOOKED_THROUGH = 20_000  # files and folders before the first picture
Tell = Callable[[int, int], None]


class SeenPicture(NamedTuple):
    """Of one picture: a digest of its file, and what it is as it stands there."""

    digest: bytes
    size: tuple[int, int]
    channels: int


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one size.

    Args:
        samples: their names and places.
        shape: (C, H, W) as they are looked at.
        resolution: to which they are cut and resized; 0 for not.
        fingerprint: the same for the same pictures, looked at in the same way.
        captions: [N], or None.
        notes: what a result says of them.
    """

    samples: Samples
    shape: tuple[int, int, int]
    fingerprint: str
    resolution: int = 0
    captions: Sequence[str] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.samples.count

    def images(self, index: Sequence[int]) -> Tensor:
        """Pictures uint8 [N, C, H, W]. Raises UserError that names one that cannot be read."""
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self._image, index))))

    def _image(self, index: int) -> np.ndarray:
        data, channels = self.samples.read(index), self.shape[0]
        assert isinstance(data, bytes)
        try:
            picture = plain_picture(open_picture(data)).convert(MODES[channels])
            if self.resolution:
                rules = ImageRules(self.resolution, channels, "center")
                picture = cut_and_resized(picture, rules)
        except UserError as error:
            raise self.samples.wrong(index, str(error)) from None
        pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
        if pixels.shape != (*self.shape[1:], channels):
            raise self.samples.wrong(index, "changed while it was looked at: run the command again")
        return pixels.transpose(2, 0, 1)


def holds_pictures(source: str) -> bool:
    """Whether a source is a folder, a zip or a prefix with pictures, and no network or run.

    Raises UserError, StoreError.
    """
    if not scheme_of(source).is_store:
        return False
    if source.lower().endswith(".zip"):
        return True
    if is_path(source):
        return folder_holds_pictures(expanded(source))
    names = list(Store.at(source).files())
    return not is_network(names) and any(map(is_picture, names))


def is_network(names: Iterable[str]) -> bool:
    """Whether a folder with these names is a network's or a run's."""
    folders = (*NETWORK_FOLDERS, *(f"{name}/" for name in network_folders()))
    return any(name in NETWORKS or name.startswith(folders) for name in names)


def folder_holds_pictures(folder: Path) -> bool:
    """Found without a look at all of a large disk."""
    if not folder.is_dir():
        return False
    top = [f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()]
    if is_network(top):
        return False
    seen = 0
    for _, _, names in os.walk(folder):
        if any(map(is_picture, names)):
            return True
        seen += 1 + len(names)
        if seen > LOOKED_THROUGH:
            return False
    return False


def open_pictures(
    source: str,
    count: int | None = None,
    resolution: int = 0,
    with_captions: bool = False,
    prompts: Path | None = None,
    tell: Tell = lambda done, total: None,
) -> PictureSet:
    """The pictures of a source, ``count`` of them drawn evenly where it holds more.

    ``prompts`` is a file with a line for each picture. Raises UserError in one line for pictures
    that are missing, damaged or of several sizes; StoreError.
    """
    found, files = listed_pictures(source)
    total, notes = found.count, {}
    if count is not None and count > total:
        raise UserError(f"{source} holds {total:,} images, --num-images asks for {count:,}")
    captions = captions_of_pictures(found, files, prompts) if with_captions or prompts else None
    if count is not None and count < total:
        chosen = sorted(random.Random(0).sample(range(total), count))
        found = found.take(chosen)
        captions = None if captions is None else [captions[index] for index in chosen]
        notes["drawn"] = f"{count} of {total}"
    digest, first = hashlib.sha256(), None
    for index, seen in enumerate(surveyed(found, tell)):
        first = first or seen
        if seen.size != first.size and not resolution:
            raise UserError(
                f"{source}: {found.name(0)} has {pixels_of_picture(first.size)} pixels, "
                f"{found.name(index)} "
                f"{pixels_of_picture(seen.size)}: images of one size are compared; "
                f"--resolution N brings all "
                "to one"
            )
        if seen.channels != first.channels:
            first = first._replace(channels=RGB)
        digest.update(seen.digest)
    assert first is not None
    width, height = (resolution, resolution) if resolution else first.size
    shape = (first.channels, height, width)
    digest.update(json.dumps([shape, resolution, captions]).encode())
    left_out = found.notes.get("left_out")
    notes |= {"left_out": left_out} if left_out else {}
    return PictureSet(found, shape, digest.hexdigest(), resolution, captions, notes)


def pixels_of_picture(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def listed_pictures(source: str) -> tuple[Samples, Callable[[str], bytes | None]]:
    """Every picture of a source by its name, in order, and how another file of it is read."""
    store = Store.at(source)
    files: dict[str, Any]
    if source.lower().endswith(".zip"):
        above, name = Store(store.url.rpartition("/")[0]), store.name
        if above.size(name) is None:
            raise UserError(f"{source} does not exist")
        reader: Any = ZipReader(Window(above, name))
        members, _ = list_zip(above, name, source)
        files = {member: tuple(place) for member, place in members.items()}
    else:
        reader, files = FolderReader(store), dict(store.files())

    def read(name: str) -> bytes | None:
        return reader.read(name, files[name]) if name in files else None

    names = sorted(name for name in files if is_picture(name))
    seeds = {str(PurePosixPath(name).parent) for name in names if SEED.search(name)}
    grids = [
        name
        for name in names
        if PurePosixPath(name).name == GRID and str(PurePosixPath(name).parent) in seeds
    ]
    names = [name for name in names if name not in set(grids)]
    if not names:
        raise UserError(f"{source}: no images in it ({', '.join(SUFFIXES['images'])})")
    notes = {"left_out": grids} if grids else {}
    places = [files[name] for name in names]
    found = Samples("images", source, len(names), reader, names, places, notes=notes)
    return replace(found, remote=not store.is_local), read


def is_picture(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return not hidden and name.lower().endswith(SUFFIXES["images"])


def surveyed(samples: Samples, tell: Tell) -> Iterable[SeenPicture]:
    """Every picture's file, several at once, in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, samples.count, AT_ONCE):
            tell(start, samples.count)
            stop = min(start + AT_ONCE, samples.count)
            yield from pool.map(partial(survey, samples), range(start, stop))


def survey(samples: Samples, index: int) -> SeenPicture:
    """Raises UserError for a file that is no picture."""
    from PIL import Image

    data = samples.read(index)
    assert isinstance(data, bytes)
    try:
        if data.startswith(PNG):
            check_png(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as picture:
                width, height = picture.size
                if picture.format != "PNG" and picture.getexif().get(ORIENTATION) in TURNED:
                    width, height = height, width
                grey = picture.mode in ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B")
    except UserError as error:
        raise samples.wrong(index, str(error)) from None
    except Exception as error:  # decoders raise many kinds
        what = re.sub(r" ?<.*>", "", short_error(error))
        raise samples.wrong(index, f"not an image ({what})") from None
    digest = hashlib.sha256(f"{samples.name(index)}\0".encode("utf-8", "surrogateescape") + data)
    return SeenPicture(digest.digest(), (width, height), GREY if grey else RGB)


# Captions ----------------------------------------------------------------------------------------


def captions_of_pictures(
    samples: Samples, read: Callable[[str], bytes | None], prompts: Path | None
) -> list[str] | None:
    """A text for each picture: of the file that was named, of the .txt beside each, or of what
    sid-ray generate has recorded; None where there are none. Raises UserError where one is missing.
    """
    if prompts is not None:
        return dealt(samples, read_prompts(str(prompts)), str(prompts))
    beside = [read(str(PurePosixPath(name).with_suffix(".txt"))) for name in samples.names]
    if any(data is not None for data in beside):
        return [caption_in(data, samples, index) for index, data in enumerate(beside)]
    try:
        recorded = json.loads(read(RECORD) or b"{}")["made_of"]["prompts"]
    except (ValueError, KeyError, TypeError):
        return None
    return dealt(samples, recorded, RECORD) if recorded else None


def caption_in(data: bytes | None, samples: Samples, index: int) -> str:
    name = PurePosixPath(samples.name(index)).with_suffix(".txt")
    if data is None:
        raise samples.wrong(index, f"there is no {name} beside it, though others have a caption")
    where = f"{samples.source}: {name}"
    return caption(text_of(data, where), where)


def dealt(samples: Samples, texts: Sequence[str], where: str) -> list[str]:
    """Texts by the seeds in the pictures' names, as generate deals them out; else one for each."""
    seeds = [SEED.fullmatch(PurePosixPath(name).name) for name in samples.names]
    if all(seeds):
        return [texts[int(match[1]) % len(texts)] for match in seeds if match]
    if len(texts) != samples.count:
        raise UserError(
            f"{where} holds {len(texts):,} prompts, {samples.source} {samples.count:,} images: one "
            "for each is expected, in the order of the images' names"
        )
    return list(texts)
