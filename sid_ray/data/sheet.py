"""A contact sheet of a prepared set: samples spread evenly over it, with labels or captions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sid_ray.data.manifest import DataManifest
from sid_ray.data.options import PrepareOptions
from sid_ray.data.samples import short_error
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store

SHOWN, ROW_GROUPS = 48, 12  # samples at most, out of so many row groups
COLUMNS, CELL = 8, 112  # pixels that a small picture is enlarged to
MARGIN, LINE, FONT = 8, 14, 11
BACKGROUND, INK, FAINT = "white", "#202020", "#707070"


@dataclass(frozen=True)
class Shown:
    """One sample: ``pixels`` [H, W, C] uint8, None where the set has none; text below it."""

    pixels: np.ndarray | None
    label: str
    text: str


def draw_sheet(store: Store, manifest: DataManifest, path: Path, decode: str = "") -> int:
    """Writes a PNG; the number of samples on it. ``decode``: a diffusers folder, for latents.

    Raises UserError for a set without pictures, and for one that cannot be read.
    """
    if manifest.kind not in ("images", "latents"):
        raise UserError(f"--out: {store} holds {manifest.kind}, no pictures")
    try:
        shown = [sample_of(row, manifest, decode) for row in spread_rows(store, manifest)]
        picture = sheet([one for one in shown if one.pixels is not None])
    except (StoreError, UserError):
        raise
    except Exception as error:  # pyarrow and decoders raise many kinds for damaged files
        raise UserError(
            f"{store} cannot be drawn ({short_error(error)}): --verify says why"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "PNG")
    return len(shown)


def spread_rows(store: Store, manifest: DataManifest) -> list[dict[str, Any]]:
    """Rows from all over the set, of a few row groups only."""
    import pyarrow.parquet as pq

    places = [
        (shard.name, group, rows)
        for shard in manifest.shards
        for group, rows in enumerate(shard.row_groups)
    ]
    wanted = [name for name in ("image", "latent", "label", "prompt") if name in manifest.columns]
    chosen = np.linspace(0, len(places) - 1, min(len(places), ROW_GROUPS)).astype(int)
    each = -(-SHOWN // len(chosen))
    found: list[dict[str, Any]] = []
    for name, group, rows in (places[index] for index in chosen):
        with store.open(name) as stream:
            table = pq.ParquetFile(stream).read_row_group(group, columns=wanted)
        picked = np.linspace(0, rows - 1, min(each, rows) + 1).astype(int)[: min(each, rows)]
        found += table.take(picked).to_pylist()
    return found[:SHOWN]


def sample_of(row: dict[str, Any], manifest: DataManifest, decode: str) -> Shown:
    from PIL import Image

    label = row.get("label")
    name = "" if label is None else f"class {label}"
    if label is not None and manifest.class_names:
        name = manifest.class_names[label]
    if "image" in row:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
    else:
        channels, height, width = manifest.shape
        moments = np.array(row["latent"], np.float32).reshape(2 * channels, height, width)
        pixels = latent_pixels(moments, manifest, decode)
    return Shown(pixels, name, row.get("prompt") or "")


def latent_pixels(moments: np.ndarray, manifest: DataManifest, decode: str) -> np.ndarray:
    """Mean and std [2C, h, w] -> [H, W, 3] uint8: decoded, or three channels of the mean.

    Channels are scaled so that two standard deviations of the set are black and white.
    """
    if decode:
        import torch

        from sid_ray.weights.components import open_vae

        recorded = manifest.source.get("convention", PrepareOptions.convention)
        codec = open_vae(decode, recorded, "cpu")
        latents = codec.from_moments(torch.from_numpy(moments)[None])
        return codec.decode_uint8(latents)[0].permute(1, 2, 0).numpy()
    mean = moments[: manifest.shape[0]]
    mean = np.stack([mean[min(channel, len(mean) - 1)] for channel in range(3)])
    centre = np.resize(manifest.mean[:3], 3)[:, None, None]
    spread = np.maximum(np.resize(manifest.std[:3], 3), 1e-6)[:, None, None]
    levels = ((mean - centre) / (4 * spread) + 0.5).clip(0, 1)
    return (levels * 255).round().astype(np.uint8).transpose(1, 2, 0)


def sheet(shown: Sequence[Shown]) -> Any:
    """Samples in rows, each over its label and caption."""
    from PIL import Image, ImageDraw, ImageFont

    first = shown[0].pixels
    assert first is not None
    scale = max(1, CELL // first.shape[1])
    width, height = first.shape[1] * scale, first.shape[0] * scale
    columns = min(COLUMNS, len(shown))
    lines = max((bool(one.label) + 2 * bool(one.text) for one in shown), default=0)
    step_x, step_y = width + MARGIN, height + MARGIN + lines * LINE
    rows = -(-len(shown) // columns)
    picture = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=FONT)
    for index, one in enumerate(shown):
        left = MARGIN + index % columns * step_x
        top = MARGIN + index // columns * step_y
        assert one.pixels is not None
        cell = Image.fromarray(one.pixels).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(cell, (left, top))
        draw.rectangle((left - 1, top - 1, left + width, top + height), outline="#d0d0d0")
        written = [(line, INK) for line in wrapped(one.label, width, font, 1)]
        written += [(line, FAINT) for line in wrapped(one.text, width, font, 2)]
        for number, (line, ink) in enumerate(written):
            draw.text((left, top + height + 1 + number * LINE), line, fill=ink, font=font)
    return picture


def wrapped(text: str, width: int, font: Any, lines: int) -> list[str]:
    """The text in at most so many lines of a width in pixels; the last one may be cut."""
    found: list[str] = []
    words = text.split()
    while words and len(found) < lines:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        found.append(line)
    if words and found:
        found[-1] += " " + " ".join(words)
    return [shortened(line, width, font) for line in found]


def shortened(line: str, width: int, font: Any) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"
