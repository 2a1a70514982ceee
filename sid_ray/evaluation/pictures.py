"""Pictures: one image a file, and contact sheets with captions."""

from __future__ import annotations

from collections.abc import Sequence
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
