"""Pictures of a source to pictures of a set: one size, one number of channels, as PNG.

A picture that is right already keeps its bytes. PNGs made here have no metadata and one level of
compression, so that the same picture always gives the same bytes.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from sid_ray.data.options import MAX_PIXELS
from sid_ray.data.samples import short_error
from sid_ray.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")  # MPO is JPEG's
COMPRESSION = 6
ORIENTATION = 0x0112  # of EXIF: how the camera was held
GREY, RGB = 1, 3
MODES = {GREY: "L", RGB: "RGB"}


@dataclass(frozen=True)
class ImageRules:
    """What a set's pictures are: ``resolution`` square, ``channels`` 1 or 3.

    ``crop`` is center, dhariwal or none; empty: nothing is resized, another size is an error.
    """

    resolution: int
    channels: int
    crop: str = ""
    to_grey: bool = False


def check_png(data: bytes) -> None:
    """Raises UserError unless every chunk is whole: decoders do not look at all checksums."""
    position = len(PNG)
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(data[position + 4 : end - 4]) != crc:
            raise UserError(f"a damaged PNG: the checksum of chunk {name!a:.12} is wrong")
        if name == b"IEND":
            return
        position = end
    raise UserError("a damaged PNG: it is cut")


def is_whole_png(data: bytes) -> bool:
    """Whether this is a PNG of which nothing is missing or changed."""
    try:
        check_png(data)
    except UserError:
        return False
    return data.startswith(PNG)


def open_picture(data: bytes) -> Any:
    """A decoded picture of Pillow's. Raises UserError that says what is wrong with it."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise UserError("not an image: the file is empty")
    if data.startswith(PNG):
        check_png(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            several = getattr(picture, "is_animated", False)
            if several and picture.format != "MPO":  # a camera's own: the first is the picture
                raise UserError("an animation or several pages: one picture a file is expected")
            picture.load()
    except UnidentifiedImageError:
        raise UserError("not an image (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or PPM)") from None
    except Image.DecompressionBombError:
        raise UserError(f"announces more than {MAX_PIXELS:,} pixels: not decoded") from None
    except UserError:
        raise
    except Exception as error:  # decoders raise many kinds
        raise UserError(f"a damaged image ({short_error(error)})") from None
    return picture


def plain_picture(picture: Any) -> Any:
    """The picture as L or RGB: upright, on white where it is transparent, 8 bit a channel."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings(), suppress(Exception):  # a damaged EXIF: it tells no turn
        warnings.simplefilter("ignore")
        if picture.getexif().get(ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("L", "RGB") and "transparency" not in picture.info:
        return picture
    if picture.mode in ("I;16", "I;16L", "I;16B", "I"):  # 16-bit grey: 65535 -> 255
        levels = np.asarray(picture).astype(np.int64)
        if levels.size and not 0 <= levels.min() <= levels.max() <= 65535:
            raise UserError("grey levels beyond 16 bit: save it with 8 or 16")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if picture.mode in ("1", "CMYK", "YCbCr"):
        return picture.convert("L" if picture.mode == "1" else "RGB")
    if picture.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa", "L", "RGB"):
        grey = picture.mode in ("LA", "La", "L")
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("L" if grey else "RGB")
    raise UserError(f"pixels of mode {picture.mode} are not supported: save it as RGB")


def channels_of(data: bytes | np.ndarray) -> tuple[int, int, int]:
    """(C, H, W) of a picture as it is."""
    if isinstance(data, np.ndarray):
        return data.shape[2], data.shape[0], data.shape[1]
    picture = plain_picture(open_picture(data))
    return (GREY if picture.mode == "L" else RGB), picture.height, picture.width


def prepare_picture(data: bytes | np.ndarray, rules: ImageRules) -> tuple[bytes, np.ndarray]:
    """(PNG, its pixels [H, W, C] uint8). Raises UserError for what cannot be one of the set."""
    from PIL import Image

    if isinstance(data, np.ndarray):
        original = Image.fromarray(data[:, :, 0] if data.shape[2] == 1 else data)
        kept = None
    else:
        original = open_picture(data)
        kept = data if original.format == "PNG" else None
    picture = plain_picture(original)
    mode = MODES[rules.channels]
    if picture.mode != mode:
        if picture.mode == "RGB" and not rules.to_grey:
            raise UserError(
                "in colours, where the first of the set is grey: --rgb stores all in colours, "
                "--grey none"
            )
        picture = picture.convert(mode)
    picture = resized(picture, rules)
    pixels = np.asarray(picture).reshape(rules.resolution, rules.resolution, rules.channels)
    if kept is not None and picture is original and bits(kept) == 8:
        return kept, pixels
    return to_png(pixels), pixels


def bits(png: bytes) -> int:
    """Bits a channel, of a PNG's header."""
    return png[24]


def to_png(pixels: np.ndarray) -> bytes:
    """Pixels [H, W, C] uint8 as PNG."""
    from PIL import Image

    file = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(file, "PNG", compress_level=COMPRESSION)
    return file.getvalue()


def resized(picture: Any, rules: ImageRules) -> Any:
    """The picture at the set's resolution."""
    from PIL import Image

    size, (width, height) = rules.resolution, picture.size
    if (width, height) == (size, size):
        return picture
    if not rules.crop:
        raise UserError(
            f"{width}x{height} pixels, {size}x{size} are expected: --resolution N brings all to "
            "one size"
        )
    if rules.crop == "dhariwal":
        return halved(picture, size)
    if rules.crop == "none" and width != height:
        raise UserError(f"{width}x{height} pixels are not square: --crop center cuts it")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    # Not resize's own box: its filter would mix in what lies outside.
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def halved(picture: Any, size: int) -> Any:
    """ADM's way (Dhariwal and Nichol, arXiv:2105.05233), which EDM's ImageNet sets use too: halves
    by averages while twice the size is left, the shorter side to the size by bicubic, the middle.
    """
    from PIL import Image

    while min(picture.size) >= 2 * size:
        half = picture.width // 2, picture.height // 2
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = size / min(picture.size)
    wide = round(picture.width * scale), round(picture.height * scale)
    picture = picture.resize(wide, Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))
