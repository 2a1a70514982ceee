"""EDM's augmentation of images, with nine labels that tell the network what was done.

The fake score sees augmented images together with their labels, so that nothing leaks into what
is learnt for labels of zero. Source: EDM (arXiv:2206.00364), appendix F.2; the geometry is that of
StyleGAN2-ADA (arXiv:2006.06676), appendix B. Transforms that EDM defines but switches off in every
published setting (whole quarter turns and pixel shifts, and all of colour) are not built.

The pipe is a pure function of images and raw draws: random numbers are keyed and come from
outside. It has two halves: ``plan`` turns draws into a few numbers a sample, in float64 on the host
(training/draws_ahead.py: beside a step), and ``apply`` does to images what these say, on their
device. A sample's result does not depend on the other samples: the official code pads by what the
most displaced sample of a batch needs, here the padding follows from the image's size alone. On
white noise of 32x32 at p = 0.12 the two differ by up to 2e-5 in batches of 128 and 2e-4 in batches
of 8, where the official padding may leave the filters' ends off. batch_margin=True is official.

Symbols
    B, C, H, W   batch, channels, height, width    p      probability of a transform
    w            a transform's raw value, 0: none  r      angle of the anisotropy
    s, a         factors of scale and anisotropy   A      [B, 3, 3], output to input: warp.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sid_ray.diffusion.warp import (
    Filters,
    Margin,
    batch_margin,
    grid_matrix,
    largest_margin,
    matrix_product,
    rotation,
    scaling,
    translation,
    warped,
)
from sid_ray.errors import UserError

LABELS = 9
PLANNED = LABELS + 6  # a sample's labels, of which the first two are its flips, and its matrix


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
    _filters: dict[tuple[object, ...], Filters] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"augmentation probability {self.probability!r} is not within 0..1")

    def __call__(self, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, C, H, W] and draws [B, 15] -> images of the same kind, labels [B, 9].

        Both halves in one, the matrices in float64 where the draws are.
        """
        if images.ndim != 4:
            raise ValueError(f"images must be [B, C, H, W], got {list(images.shape)}")
        if draws.shape != (len(images), DRAWS):
            expected = [len(images), DRAWS]
            raise ValueError(f"draws must be [B, {DRAWS}] = {expected}, got {list(draws.shape)}")
        height, width = images.shape[2:]
        margin = self.margin(draws, height, width)
        return self.apply(images, self.planned(draws, height, width, margin), margin)

    def plan(self, draws: Tensor, shape: Sequence[int]) -> Tensor:
        """Draws [..., 15] -> what ``apply`` does to images of a shape (C, H, W): [..., 15] float32.

        The same numbers for a sample whatever else is planned with it.
        """
        if self.batch_margin:
            raise ValueError("batch_margin ties the samples of a pass together: nothing to plan")
        height, width = shape[1:]
        flat = draws.reshape(-1, DRAWS)
        planned = self.planned(flat, height, width, largest_margin(height, width))
        return planned.float().reshape(*draws.shape[:-1], PLANNED)

    def planned(self, draws: Tensor, height: int, width: int, margin: Margin) -> Tensor:
        """[B, 15] float64: in float32 a sine may be rounded differently at another place."""
        todo = self.transforms(Draws(*draws.double().unbind(1)))
        matrix = grid_matrix(self.matrix(todo, height, width), height, width, margin)
        return torch.cat([todo.labels(), matrix.flatten(1)], 1)

    def margin(self, draws: Tensor, height: int, width: int) -> Margin:
        """What is padded. Published: by the most displaced sample."""
        if not self.batch_margin:
            return largest_margin(height, width)
        todo = self.transforms(Draws(*draws.double().unbind(1)))
        return batch_margin(self.matrix(todo, height, width), height, width)

    def apply(
        self, images: Tensor, planned: Tensor, margin: Margin | None = None
    ) -> tuple[Tensor, Tensor]:
        """images [B, C, H, W] and what was planned [B, 15] -> images of the same kind, labels.

        Pixels are computed, and labels returned, in the images' precision, float32 at least. Every
        image is resampled, also where nothing is to be done.
        """
        wide = torch.promote_types(images.dtype, torch.float32)
        if self.probability == 0:
            return images, images.new_zeros(len(images), LABELS, dtype=wide)
        found = images.to(wide)
        filters = self.filters(found, margin)
        planned = planned.to(found)
        labels = planned[:, :LABELS]
        matrix = planned[:, LABELS:].unflatten(1, (2, 3))
        return warped(flip(found, labels), matrix, filters).to(images.dtype), labels

    def filters(self, images: Tensor, margin: Margin | None) -> Filters:
        """Made once for a size, device and precision where the margin follows from the size."""
        if self.batch_margin and margin is not None:
            return Filters.of(images, margin)
        key = (*images.shape[2:], images.device, images.dtype)
        if key not in self._filters:
            self._filters[key] = Filters.of(images, largest_margin(*images.shape[2:]))
        return self._filters[key]

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


def flip(images: Tensor, labels: Tensor) -> Tensor:
    """Mirrors pixels where the first labels are 1: left to right, and top to bottom."""
    for column, axis in ((0, 3), (1, 2)):
        mirrored = (labels[:, column] == 1).reshape(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(axis), images)
    return images
