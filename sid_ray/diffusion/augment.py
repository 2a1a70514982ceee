"""EDM's augmentation of images, with nine labels that tell the network what was done.

The fake score sees augmented images together with their labels, so that nothing leaks into what
is learnt for labels of zero. Source: EDM (arXiv:2206.00364), appendix F.2; the geometry is that of
StyleGAN2-ADA (arXiv:2006.06676), appendix B. Transforms that EDM defines but switches off in every
published setting (whole quarter turns and pixel shifts, and all of colour) are not built.

The pipe is a pure function of images and raw draws: random numbers are keyed and come from
outside. A sample's result does not depend on the other samples: the official code pads by what the
most displaced sample of a batch needs, here the padding follows from the image's size alone. On
white noise of 32x32 at p = 0.12 the two differ by up to 2e-5 in batches of 128 and 2e-4 in batches
of 8, where the official padding may leave the filters' ends off. batch_margin=True is official.

Symbols
    B, C, H, W   batch, channels, height, width    p      probability of a transform
    w            a transform's raw value, 0: none  r      angle of the anisotropy
    s, a         factors of scale and anisotropy   h      low-pass filter, 12 taps
    A            [B, 3, 3] a matrix that takes output to input coordinates: pixels, x to the right,
                 y down, origin at the image's centre
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_ray.errors import UserError

LABELS = 9

# h: symlet 6, the low-pass filter of decomposition. Sum sqrt(2), sum of squares 1.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
FILTER_PAD = len(SYM6) // 4  # pixels that the filter needs beyond each border


class Draws(NamedTuple):
    """The columns of a draws tensor [B, 15], each [B], in the order of the official draws.

    Flips are 0 or 1, gates uniform in [0, 1), the rest as named. A value counts where its gate is
    below the transform's probability.
    """

    xflip: Tensor
    xflip_gate: Tensor
    yflip: Tensor
    yflip_gate: Tensor
    scale_normal: Tensor
    scale_gate: Tensor
    rotation_uniform: Tensor
    rotation_gate: Tensor
    aniso_normal: Tensor
    aniso_angle_uniform: Tensor
    aniso_gate: Tensor
    aniso_angle_gate: Tensor
    shift_x_normal: Tensor
    shift_y_normal: Tensor
    shift_gate: Tensor


DRAWS = len(Draws._fields)


def draw_augmentations(count: int, generator: torch.Generator) -> Tensor:
    """Raw draws [count, 15], float32, from a generator on the CPU.

    Row by row from uniform numbers, so that a sample's draws do not depend on ``count``.
    """
    uniform = torch.rand(count, DRAWS, generator=generator)
    # In the middle of its interval of width 2^-24: no infinity, and symmetric.
    normal = torch.special.ndtri(uniform.double() + 2**-25).float()
    columns = [
        (u >= 0.5).float() if name in ("xflip", "yflip") else n if name.endswith("_normal") else u
        for name, u, n in zip(Draws._fields, uniform.unbind(1), normal.unbind(1), strict=True)
    ]
    return torch.stack(columns, 1)


class Transforms(NamedTuple):
    """What is done to each sample, each field [B]; 0 means nothing."""

    xflip: Tensor
    yflip: Tensor
    scale: Tensor
    rotation: Tensor
    aniso: Tensor
    aniso_angle: Tensor
    shift_x: Tensor
    shift_y: Tensor

    def labels(self) -> Tensor:
        """[B, 9], zeros for an image left alone."""
        return torch.stack(
            [
                self.xflip,
                self.yflip,
                self.scale,
                self.rotation.cos() - 1,
                self.rotation.sin(),
                self.aniso * self.aniso_angle.cos(),
                self.aniso * self.aniso_angle.sin(),
                self.shift_x,
                self.shift_y,
            ],
            dim=1,
        )


class Margin(NamedTuple):
    """Pixels that reflection adds on each side."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class AugmentPipe:
    """Augments images, differentiably in them. Defaults are the published settings.

    Args:
        probability: p; published: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQv2. 0 does nothing.
        xflip, yflip, scale, rotate_frac, aniso, translate_frac: multipliers; a transform's
            probability is min(1, multiplier * p). Mirroring is a fair coin whatever p is.
        scale_std, aniso_std: standard deviations of log2 of the factors.
        rotate_frac_max: the largest rotation, in half turns.
        aniso_rotate_prob: how often the anisotropy has a direction of its own.
        translate_frac_std: standard deviation of the shift, in image sizes.
        batch_margin: pad as the official code does, which ties samples together; to compare.
    """

    probability: float
    xflip: float = 1e8
    yflip: float = 1.0
    scale: float = 1.0
    rotate_frac: float = 1.0
    aniso: float = 1.0
    translate_frac: float = 1.0
    scale_std: float = 0.2
    rotate_frac_max: float = 1.0
    aniso_std: float = 0.2
    aniso_rotate_prob: float = 0.5
    translate_frac_std: float = 0.125
    batch_margin: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"augmentation probability {self.probability!r} is not within 0..1")

    def __call__(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, C, H, W] and draws [B, 15] -> images of the same kind, labels [B, 9].

        Pixels are computed, and labels returned, in the images' precision, float32 at least. What
        is to be done is computed where the draws are (the CPU, as a rule), in float64: in float32
        a sine may be rounded differently at another place in the batch.
        """
        if images.ndim != 4:
            raise ValueError(f"images must be [B, C, H, W], got {list(images.shape)}")
        if draws.shape != (len(images), DRAWS):
            expected = [len(images), DRAWS]
            raise ValueError(f"draws must be [B, {DRAWS}] = {expected}, got {list(draws.shape)}")
        wide = torch.promote_types(images.dtype, torch.float32)
        if self.probability == 0:
            return images, images.new_zeros(len(images), LABELS, dtype=wide)
        todo = self.transforms(Draws(*draws.double().unbind(1)))
        matrix = self.matrix(todo, *images.shape[2:])
        augmented = self.warp(flip(images.to(wide), todo), matrix).to(images.dtype)
        return augmented, todo.labels().to(images.device, wide)

    def transforms(self, draws: Draws) -> Transforms:
        """Scales the draws and closes the gates."""

        def gated(value: Tensor, gate: Tensor, multiplier: float) -> Tensor:
            return torch.where(gate < multiplier * self.probability, value, 0.0)

        angle = math.pi * (2 * draws.rotation_uniform - 1) * self.rotate_frac_max
        aniso_angle = math.pi * (2 * draws.aniso_angle_uniform - 1)
        return Transforms(
            xflip=gated(draws.xflip, draws.xflip_gate, self.xflip),
            yflip=gated(draws.yflip, draws.yflip_gate, self.yflip),
            scale=gated(draws.scale_normal, draws.scale_gate, self.scale),
            rotation=gated(angle, draws.rotation_gate, self.rotate_frac),
            aniso=gated(draws.aniso_normal, draws.aniso_gate, self.aniso),
            # The direction has a gate of its own, in which p has no part.
            aniso_angle=torch.where(
                draws.aniso_angle_gate < self.aniso_rotate_prob, aniso_angle, 0.0
            ),
            shift_x=gated(draws.shift_x_normal, draws.shift_gate, self.translate_frac),
            shift_y=gated(draws.shift_y_normal, draws.shift_gate, self.translate_frac),
        )

    def matrix(self, todo: Transforms, height: int, width: int) -> Tensor:
        """A [B, 3, 3] = S(1/s, 1/s) R(w) [R(-r) S(1/a, a) R(r)] T(-shift): all but the flips."""
        s = torch.exp2(self.scale_std * todo.scale)
        a = torch.exp2(self.aniso_std * todo.aniso)
        return matrix_product(
            scaling(s, 1 / s, 1 / s),
            rotation(todo.rotation),
            rotation(-todo.aniso_angle),
            scaling(a, 1 / a, a),
            rotation(todo.aniso_angle),
            translation(
                s,
                -self.translate_frac_std * width * todo.shift_x,
                -self.translate_frac_std * height * todo.shift_y,
            ),
        )

    def warp(self, images: Tensor, matrix: Tensor) -> Tensor:
        """Resamples every image by A, also where A is the identity.

        At twice the resolution, between the two filters of a wavelet transform, so that bilinear
        interpolation does not blur (StyleGAN2-ADA, appendix B).
        """
        height, width = images.shape[2:]
        if self.batch_margin:
            margin = batch_margin(matrix, height, width)
        else:
            margin = largest_margin(height, width)
        return downsample(interpolate(pad_and_upsample(images, margin), matrix, margin))


def flip(images: Tensor, todo: Transforms) -> Tensor:
    """Mirrors pixels, left to right and top to bottom."""
    for w, axis in ((todo.xflip, 3), (todo.yflip, 2)):
        mirrored = (w == 1).to(images.device).reshape(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(axis), images)
    return images


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


def pad_and_upsample(images: Tensor, margin: Margin) -> Tensor:
    """[B, C, H, W] -> twice the padded size.

    Both filters are products with a banded matrix an axis: at 32x32 and 64x64, 6 to 20 times
    faster on a CPU than convolutions one channel at a time, and exact where those default to TF32.
    """
    height, width = images.shape[2:]
    along_x = pad_and_upsample_matrix(width, margin.left, margin.right, images)
    along_y = pad_and_upsample_matrix(height, margin.top, margin.bottom, images)
    return along_y @ (images @ along_x.T)


def centred(size: int, like: Tensor) -> Tensor:
    """[size] coordinates of pixels' centres, their mean 0."""
    return torch.arange(size, device=like.device).to(like.dtype) - (size - 1) / 2


def interpolate(upsampled: Tensor, matrix: Tensor, margin: Margin) -> Tensor:
    """Bilinear sampling at A's coordinates -> [B, C, 2 (H + 6), 2 (W + 6)], zeros outside."""
    height_in, width_in = upsampled.shape[2:]
    height_out = height_in - 2 * (margin.top + margin.bottom - 2 * FILTER_PAD)
    width_out = width_in - 2 * (margin.left + margin.right - 2 * FILTER_PAD)
    one = torch.ones_like(matrix[:, 0, 0])
    matrix = matrix_product(
        # Back to the frame of pixels of the padded image; to the doubled one, whose pixels'
        # centres lie half a pixel off; to the coordinates of grid_sample, -1 to 1.
        scaling(one, 2 / width_in, 2 / height_in),
        translation(one, -0.5, -0.5),
        scaling(one, 2, 2),
        translation(one, (margin.left - margin.right) / 2, (margin.top - margin.bottom) / 2),
        matrix,
        scaling(one, 0.5, 0.5),
        translation(one, 0.5, 0.5),
    )
    x, y = (centred(n, upsampled) for n in (width_out, height_out))
    pixels = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones_like(y[:, None] + x)])
    grid = matrix_product(
        matrix[:, :2].to(upsampled), pixels.flatten(1)[None]
    )  # [B, 2, H_out * W_out]
    grid = grid.mT.unflatten(1, (height_out, width_out))
    return F.grid_sample(upsampled, grid, "bilinear", "zeros", align_corners=False)


def downsample(images: Tensor) -> Tensor:
    """[B, C, 2 (H + 6), 2 (W + 6)] -> [B, C, H, W]: every second pixel of a correlation with h."""
    height, width = images.shape[2:]
    along_x = filter_matrix(width, width // 2 - 2 * FILTER_PAD, -1, images)
    along_y = filter_matrix(height, height // 2 - 2 * FILTER_PAD, -1, images)
    return along_y.T @ (images @ along_x)
