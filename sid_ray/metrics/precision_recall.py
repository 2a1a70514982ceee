"""Improved precision and recall: shares of samples that lie in the other set's neighbourhoods.

A set's neighbourhood is the union of balls round its samples, each reaching the sample's k-th
nearest neighbour in the set. Precision: the share of made samples in that of the real ones (how
good). Recall: the share of real samples in that of the made ones (how varied).

Distances are made in tiles and only the k smallest of a row are kept, so memory grows with the
number of samples and not with its square. Float64, so that rounding decides ties only, on the
device that the features came from: of two sets of 50,000 in 2,048 dimensions it is 41 TFLOP.

Source: Kynkaanniemi et al., arXiv 1904.06991.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from sid_ray.errors import UserError

NEIGHBOURS = 3
TILE = 2048
"""Samples a side of a tile of distances: 32 MiB of float64."""


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 [N, M] of float64 [N, D] and [M, D]."""
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2).clamp(min=0)


def tiles(x: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of x."""
    return ((start, x[start : start + size]) for start in range(0, len(x), size))


def squared_radii(x: Tensor, neighbours: int = NEIGHBOURS, tile: int = TILE) -> Tensor:
    """The squared distance of each sample [N, D] to its k-th nearest other one: [N]."""
    found = []
    for first, rows in tiles(x, tile):
        nearest = x.new_empty(len(rows), 0)
        for start, columns in tiles(x, tile):
            part = squared_distances(rows, columns)
            if start == first:  # a sample is not its own neighbour
                part.fill_diagonal_(torch.inf)
            both = torch.cat([nearest, part], 1)
            nearest = both.topk(min(neighbours, both.shape[1]), largest=False).values
        found.append(nearest[:, -1])
    return torch.cat(found)


def covered(x: Tensor, y: Tensor, radii: Tensor, tile: int = TILE) -> Tensor:
    """Which samples of x [N, D] lie in a ball round a sample of y [M, D]: bool [N]."""
    inside = []
    for _, rows in tiles(x, tile):
        hit = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
        for start, columns in tiles(y, tile):
            reach = radii[start : start + len(columns)]
            hit |= (squared_distances(rows, columns) <= reach).any(1)
        inside.append(hit)
    return torch.cat(inside)


def precision_recall(
    made: NDArray | Tensor,
    real: NDArray | Tensor,
    neighbours: int = NEIGHBOURS,
    tile: int = TILE,
    device: torch.device | str | None = None,
) -> PrecisionRecall:
    """Of features [N, D] of made images and [M, D] of real ones, on ``device``; without one, on
    that which they are on.

    Raises UserError for a set of no more samples than neighbours.
    """
    if min(len(made), len(real)) <= neighbours:
        raise UserError(
            f"precision and recall of {len(made)} made and {len(real)} real samples: more than "
            f"{neighbours} of each are needed"
        )
    x, y = (torch.as_tensor(each, device=device).double() for each in (made, real))
    centre = y.mean(0)  # far from the origin, distances by scalar products lose digits
    x, y = x - centre, y - centre
    precise = covered(x, y, squared_radii(y, neighbours, tile), tile)
    recalled = covered(y, x, squared_radii(x, neighbours, tile), tile)
    return PrecisionRecall(float(precise.double().mean()), float(recalled.double().mean()))
