"""Latents as EDM2's tools write them: a .npy a sample, mean and std of a VAE's posterior."""

from __future__ import annotations

import io
import math

import numpy as np

from sid_ray.data.samples import short_error
from sid_ray.errors import UserError

MAX_HALF = 65504.0  # the largest float16
DTYPES = ("float16", "float32", "float64")
READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_moments(data: bytes) -> np.ndarray:
    """[2C, h, w] float16 out of a .npy file. Nothing of it is unpickled.

    Raises UserError for another type or shape, and for numbers that are not finite or too large.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in READERS:
            raise ValueError(f"version {version}")
        shape, by_columns, dtype = READERS[version](file, max_header_size=4096)
        count = math.prod(shape)
        if dtype.hasobject:
            raise ValueError("it holds pickled objects")
        if file.tell() + count * dtype.itemsize != len(data):
            raise ValueError(f"cut, or not the {count:,} numbers that it announces")
    except Exception as error:  # its header is parsed by Python's own tokenizer
        raise UserError(f"not a .npy of numbers ({short_error(error)})") from None
    if dtype.name not in DTYPES:
        raise UserError(f"{dtype.name} numbers, {' or '.join(DTYPES)} are expected")
    if len(shape) != 3 or shape[0] % 2 or not all(shape):
        raise UserError(f"shape {list(shape)}, [2C, h, w] is expected: mean and std of a VAE")
    numbers = np.frombuffer(data, dtype, offset=file.tell())
    return to_half(numbers.reshape(shape, order="F" if by_columns else "C"))


def to_half(moments: np.ndarray) -> np.ndarray:
    """Mean and std [..., 2C, h, w] as float16. Raises UserError for what does not fit."""
    wide = np.asarray(moments, np.float32)
    if not np.isfinite(wide).all():
        raise UserError("holds NaN or infinite numbers")
    if float(np.abs(wide).max()) > MAX_HALF:
        raise UserError(f"holds {float(np.abs(wide).max()):.4g}, beyond float16")
    if float(wide[..., wide.shape[-3] // 2 :, :, :].min()) < 0:
        raise UserError("its second half is negative: not mean and std of a VAE's posterior")
    return wide.astype(np.float16)
