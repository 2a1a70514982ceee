"""Pictures: one image a file, and contact sheets with captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sid_ray.data.source import DataSource
from sid_ray.evaluation.samplers import seeded_uniform, to_uint8
from sid_ray.storage.durable import moved_into_place

SHEET_ROWS, SHEET_COLUMNS, SHEET_PIXELS = 8, 10, 2048
MARGIN, CAPTION_HEIGHT = 8, 22
BACKGROUND, INK = "white", "black"


def to_picture(image: Tensor) -> Image.Image:
    """One image [C, H, W], in [-1, 1] or uint8, as a grey or RGB picture."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def tile(images: Tensor, columns: int, scale: int) -> Image.Image:
    """Images [N, C, H, W] in rows of ``columns``, each pixel ``scale`` pixels wide."""
    rows = -(-len(images) // columns)
    height, width = images.shape[2] * scale + 1, images.shape[3] * scale + 1
    sheet = Image.new("RGB", (columns * width, rows * height), BACKGROUND)
    for index, image in enumerate(images):
        picture = to_picture(image).resize((width - 1, height - 1), Image.Resampling.NEAREST)
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return sheet


def pixel_scale(resolution: int, target: int = 40) -> int:
    """Enlargement that makes small images about ``target`` pixels wide; 1 for large ones."""
    return max(1, target // resolution)


def sheet_samples(source: DataSource, resolution: int) -> tuple[int, Tensor]:
    """(columns, samples) of a contact sheet: a column a class, or as many texts.

    Of many classes ten are shown, evenly apart; of large images fewer.
    """
    columns = max(2, min(SHEET_COLUMNS, SHEET_PIXELS // resolution))
    rows = max(2, min(SHEET_ROWS, SHEET_PIXELS // resolution))
    if not source.label_dim:
        return columns, source.index(seeded_uniform(range(rows * columns)))
    classes = source.labels(torch.arange(len(source))).numpy()
    first = torch.from_numpy(np.unique(classes, return_index=True)[1])
    apart = torch.linspace(0, len(first) - 1, min(columns, len(first))).round().long()
    return len(apart), first[apart].repeat(rows)


def contact_sheet(panels: Sequence[tuple[str, Tensor]], columns: int) -> Image.Image:
    """Panels side by side, each a caption over a tile of images of the same seeds."""
    scale = pixel_scale(panels[0][1].shape[-1])
    tiles = [(caption, tile(images, columns, scale)) for caption, images in panels]
    width = sum(picture.width + MARGIN for _, picture in tiles) + MARGIN
    height = max(picture.height for _, picture in tiles) + CAPTION_HEIGHT + 2 * MARGIN
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    left = MARGIN
    for caption, picture in tiles:
        draw.text((left, MARGIN - 2), caption, fill=INK, font=font)
        sheet.paste(picture, (left, MARGIN + CAPTION_HEIGHT))
        left += picture.width + MARGIN
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a PNG, creating its folder; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with moved_into_place(path, sync=False) as temporary:
        picture.save(temporary, "PNG")


class PictureWriter:
    """Writes pictures, a PNG each.

    ``beside``: in threads, while a GPU makes the next ones; one batch at a time waits to be
    written. Else at once. ``written``: how many are on disk. Raises OSError for a disk that fails.
    """

    def __init__(self, beside: bool = False):
        self.written = 0
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1)) if beside else None
        self._waiting: list[Future[None]] = []

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def write(self, images: Tensor, paths: Sequence[Path]) -> None:
        """Images uint8 [N, C, H, W] in CPU memory. Returns when those before them are written."""
        self.finish()
        for image, path in zip(images, paths, strict=True):
            if self._pool is None:
                save_picture(to_picture(image), path)
                self.written += 1
            else:
                self._waiting.append(self._pool.submit(save_picture, to_picture(image), path))

    def finish(self) -> None:
        """Returns when all are written."""
        for each in self._waiting:
            each.result()
        self.written += len(self._waiting)
        self._waiting = []
