"""Resampling of images by matrices, as EDM's augmentation does it: differentiable in the images.

At twice the resolution, between the two filters of a wavelet transform, so that bilinear
interpolation does not blur (StyleGAN2-ADA, arXiv:2006.06676, appendix B).

Symbols
    B, C, H, W   batch, channels, height, width     h      low-pass filter, 12 taps
    A            [B, 3, 3] a matrix that takes output to input coordinates: pixels, x to the right,
                 y down, origin at the image's centre
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# h: symlet 6, the low-pass filter of decomposition. Sum sqrt(2), sum of squares 1.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
FILTER_PAD = len(SYM6) // 4  # pixels that the filter needs beyond each border


class Margin(NamedTuple):
    """Pixels that reflection adds on each side."""

    left: int
    top: int
    right: int
    bottom: int


# Matrices [B, 3, 3] on (x, y, 1).


def affine(like: Tensor, *entries: Tensor | float) -> Tensor:
    """The two upper rows from six entries, each [B] or a number, for ``like`` [B]."""
    whole = (*entries, 0.0, 0.0, 1.0)
    filled = [e if isinstance(e, Tensor) else torch.full_like(like, e) for e in whole]
    return torch.stack(filled, dim=1).unflatten(1, (3, 3))


def scaling(like: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
    """S(x, y) = diag(x, y, 1)."""
    return affine(like, x, 0.0, 0.0, 0.0, y, 0.0)


def translation(like: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
    """T(x, y): moves by x and y."""
    return affine(like, 1.0, 0.0, x, 0.0, 1.0, y)


def rotation(angle: Tensor) -> Tensor:
    """R(t) = [[cos t, -sin t, 0], [sin t, cos t, 0], [0, 0, 1]]."""
    cos, sin = angle.cos(), angle.sin()
    return affine(angle, cos, -sin, 0.0, sin, cos, 0.0)


def matrix_product(first: Tensor, *others: Tensor) -> Tensor:
    """[B, M, 3] [B, 3, N] ..., from left to right.

    Three terms written out: torch.matmul may round differently for another B, and may be told to
    use TF32, which would move pixels.
    """
    for other in others:
        x, y, one = (first[:, :, k, None] * other[:, k, None, :] for k in range(3))
        first = x + y + one
    return first


def largest_margin(height: int, width: int) -> Margin:
    """As much as reflection can give, whatever is done to the images."""
    return Margin(width - 1, height - 1, width - 1, height - 1)


def batch_margin(matrix: Tensor, height: int, width: int) -> Margin:
    """How far the corners of any image of the batch leave the frame, and the filters' reach."""
    x, y = (width - 1) / 2, (height - 1) / 2
    corners = matrix.new_tensor([[-x, x, x, -x], [-y, -y, y, y], [1, 1, 1, 1]])
    x_in, y_in, _ = matrix_product(matrix, corners.expand(len(matrix), 3, 4)).unbind(1)  # [B, 4]
    reach = torch.stack([-x_in, -y_in, x_in, y_in]).amax(dim=(1, 2))
    reach = reach + matrix.new_tensor([2 * FILTER_PAD - c for c in (x, y, x, y)])
    limit = matrix.new_tensor(largest_margin(height, width))
    return Margin(*reach.clamp_min(0).minimum(limit).ceil().int().tolist())


def filter_matrix(rows: int, columns: int, start: int, like: Tensor) -> Tensor:
    """[rows, columns] of h[start + row - 2 * column], 0 where h ends."""
    row = torch.arange(rows, device=like.device)[:, None]
    column = torch.arange(columns, device=like.device)
    tap = start + row - 2 * column
    h = like.new_tensor(SYM6)
    return torch.where((tap >= 0) & (tap < len(SYM6)), h[tap.clamp(0, len(SYM6) - 1)], 0.0)


def pad_and_upsample_matrix(size: int, before: int, after: int, like: Tensor) -> Tensor:
    """[2 * padded, size] for one axis: reflects at both borders, then doubles the resolution.

    Reflection leaves out the border pixel. The filter is the reversed h over pixels with zeros
    between them, no gain, zeros beyond the padding.
    """
    pixel = (torch.arange(-before, size + after, device=like.device)).abs()
    pixel = torch.where(pixel < size, pixel, 2 * (size - 1) - pixel)
    reflection = F.one_hot(pixel, size).to(like.dtype)
    return filter_matrix(2 * len(pixel), len(pixel), len(SYM6) // 2 - 1, like) @ reflection


def centred(size: int, like: Tensor) -> Tensor:
    """[size] coordinates of pixels' centres, their mean 0."""
    return torch.arange(size, device=like.device).to(like.dtype) - (size - 1) / 2


class Filters(NamedTuple):
    """What a warp needs beside images and matrices: of one size, device and precision.

    Both filters are products with a banded matrix an axis: at 32x32 and 64x64, 6 to 20 times
    faster on a CPU than convolutions one channel at a time, and exact where those default to TF32.
    """

    up_x: Tensor  # [2 * padded, W]
    up_y: Tensor  # [2 * padded, H]
    pixels: Tensor  # [3, H_out * W_out], (x, y, 1) of what is sampled, H_out = 2 (H + 6)
    down_x: Tensor  # [W_out, W]
    down_y: Tensor  # [H_out, H]

    @classmethod
    def of(cls, images: Tensor, margin: Margin) -> Filters:
        height, width = images.shape[2:]
        height_out, width_out = (2 * (n + 2 * FILTER_PAD) for n in (height, width))
        x, y = (centred(n, images) for n in (width_out, height_out))
        grid = torch.meshgrid(x, y, indexing="xy")
        return cls(
            pad_and_upsample_matrix(width, margin.left, margin.right, images),
            pad_and_upsample_matrix(height, margin.top, margin.bottom, images),
            torch.stack([*grid, torch.ones_like(y[:, None] + x)]).flatten(1),
            filter_matrix(width_out, width, -1, images),
            filter_matrix(height_out, height, -1, images),
        )


def grid_matrix(matrix: Tensor, height: int, width: int, margin: Margin) -> Tensor:
    """A of pixels -> that of grid_sample's coordinates, -1 to 1, in the padded and doubled image.

    [B, 2, 3]: its upper rows.
    """
    height_in = 2 * (height + margin.top + margin.bottom)
    width_in = 2 * (width + margin.left + margin.right)
    one = torch.ones_like(matrix[:, 0, 0])
    return matrix_product(
        # Back to the frame of pixels of the padded image; to the doubled one, whose pixels'
        # centres lie half a pixel off; to the coordinates of grid_sample, -1 to 1.
        scaling(one, 2 / width_in, 2 / height_in),
        translation(one, -0.5, -0.5),
        scaling(one, 2, 2),
        translation(one, (margin.left - margin.right) / 2, (margin.top - margin.bottom) / 2),
        matrix,
        scaling(one, 0.5, 0.5),
        translation(one, 0.5, 0.5),
    )[:, :2]


def warped(images: Tensor, matrix: Tensor, filters: Filters) -> Tensor:
    """[B, C, H, W] sampled at what ``matrix`` [B, 2, 3] of grid_matrix says, zeros outside."""
    height, width = images.shape[2:]
    size = 2 * (height + 2 * FILTER_PAD), 2 * (width + 2 * FILTER_PAD)
    upsampled = filters.up_y @ (images @ filters.up_x.T)
    grid = matrix_product(matrix, filters.pixels[None])  # [B, 2, H_out * W_out]
    sampled = F.grid_sample(
        upsampled, grid.mT.unflatten(1, size), "bilinear", "zeros", align_corners=False
    )
    return filters.down_y.T @ (sampled @ filters.down_x)
