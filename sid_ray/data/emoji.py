"""Emoji: 1,918 real 16x16 pictures with captions and categories, shipped with the package.

Source: Twemoji, Copyright Twitter, Inc and other contributors, graphics CC-BY 4.0; prepared by
examples/prepare_emoji.py.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SHAPE = (3, 16, 16)
FILE = Path(__file__).parent.parent / "assets" / "emoji-16" / "emoji.parquet"


class Emoji(NamedTuple):
    """The whole data set, in the order of the file.

    ``images`` [N, 3, 16, 16] float32 in [-1, 1], ``captions`` N different strings, ``categories``
    [N] int64, places in ``category_names``, which are in alphabetical order.
    """

    images: Tensor
    captions: tuple[str, ...]
    categories: Tensor
    category_names: tuple[str, ...]


@cache
def load_emoji() -> Emoji:
    """The data set, read once and shared: not to be changed in place."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(FILE).to_pydict()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in table["image"]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    names = tuple(sorted(set(table["category"])))
    categories = torch.tensor([names.index(name) for name in table["category"]])
    return Emoji(images.contiguous(), tuple(table["caption"]), categories, names)
