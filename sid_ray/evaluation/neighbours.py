"""The training images that made images are nearest to, as a feature network sees them.

A generator that copies its training set makes images that are far nearer to one of its images than
these are to one another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS = 8192  # real images that are compared at once
ASKED = 1000  # real images whose own neighbours say how far apart real images are


class Neighbours(NamedTuple):
    """Of each made image: distances [N, K] to its nearest real images, ascending, and their
    numbers [N, K] in the set; ``usual``: of real images to the nearest other one, the median.
    """

    distances: NDArray[np.float32]
    numbers: NDArray[np.int64]
    usual: float


def find_neighbours(made: NDArray, real: NDArray, count: int) -> Neighbours:
    """Of features [N, D] among [M, D], M > 1; ``count`` or all M of them where they are fewer."""
    distances, index = nearest_rows(torch.from_numpy(made), real, count)
    among, _ = nearest_rows(torch.from_numpy(np.array(real[:ASKED])), real, 2)
    return Neighbours(distances.numpy(), index.numpy(), float(among[:, 1].median()))


def nearest_rows(asked: Tensor, real: NDArray, count: int) -> tuple[Tensor, Tensor]:
    """Distances [N, K] of ``asked`` [N, D] to the nearest of [M, D], ascending, and which."""
    best = torch.empty(len(asked), 0)
    index = torch.empty(len(asked), 0, dtype=torch.long)
    for start in range(0, len(real), ROWS):
        rows = torch.from_numpy(np.array(real[start : start + ROWS]))
        # Products of features would round small distances away.
        found = torch.cdist(asked, rows, compute_mode="donot_use_mm_for_euclid_dist")
        here = torch.arange(start, start + len(rows)).expand(len(asked), -1)
        both = torch.cat([best, found], 1)
        best, places = both.topk(min(count, both.shape[1]), largest=False)
        index = torch.cat([index, here], 1).gather(1, places)
    return best, index


def pictures_at(parts: Iterable[Tensor], wanted: Iterable[int]) -> dict[int, Tensor]:
    """Some images of a set by their number, out of all in order: uint8 [rows, C, H, W] parts."""
    left, start, found = sorted(set(wanted), reverse=True), 0, {}
    for part in parts:
        while left and left[-1] < start + len(part):
            number = left.pop()
            found[number] = part[number - start].clone()
        if not left:
            break
        start += len(part)
    return found
