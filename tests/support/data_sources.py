"""Small sources for the tests of preparing: pictures, archives, latents."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """[N, H, W, C] uint8."""
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: np.ndarray, form: str = "PNG", **options) -> bytes:
    """One image [H, W, C] as a file."""
    file = io.BytesIO()
    squeezed = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    Image.fromarray(squeezed).save(file, form, **options)
    return file.getvalue()


def edm_name(index: int, end: str = "png") -> str:
    return f"{index // 1000:05d}/img{index:08d}.{end}"


def write_zip(path: Path, members: dict[str, bytes | str], method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def edm_members(images: np.ndarray, labels: list | None = None) -> dict[str, bytes | str]:
    """An EDM archive's members: PNGs, and dataset.json where there are labels."""
    members: dict[str, bytes | str] = {edm_name(i): encoded(x) for i, x in enumerate(images)}
    if labels is not None:
        rows = [[edm_name(i), label] for i, label in enumerate(labels)]
        members["dataset.json"] = json.dumps({"labels": rows})
    return members


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def moments(count: int, shape: tuple[int, int, int] = (2, 4, 4), seed: int = 0) -> np.ndarray:
    """Mean and std [N, 2C, h, w] float32."""
    values = np.random.default_rng(seed).normal(size=(count, 2, *shape)).astype(np.float32)
    values[:, 1] = np.abs(values[:, 1])
    return values.reshape(count, 2 * shape[0], *shape[1:])
