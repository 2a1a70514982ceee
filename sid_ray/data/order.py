"""Which sample of a prepared set stands at which position of the stream that training reads.

A pure function of (seed, stream, position): sample i of logical group g at images_seen n stands at
position n + g * group_size + i, whoever computes it. Every epoch holds every sample once:

    row groups   in an order of the epoch's own, one after another: the sequence
    lanes        each takes one stretch of the sequence; logical group g reads lane g mod L
    windows      a few row groups in a row of a lane, whose samples are shuffled together

So a row group is read for one lane; only one in which a lane ends and the next begins is read for
both. Where every group has a lane of its own, a row group is read by one rank, whatever the number
of ranks; where many small groups share LANES lanes, by one rank where the number of ranks divides L
(ranks take groups round-robin). A batch holds samples of L x (row groups a window) row groups from
all over the file: what all ranks together keep in memory.

Symbols
    N, G, L   samples an epoch, samples a group, lanes
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from sid_ray.diffusion.rng import DATA, generator_for

KEPT_EPOCHS = 3
# The most lanes: divisible by 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64 and 96 ranks. EDM2-XXL
# has 1,024 groups of 2 samples: with as many lanes all ranks would keep 64 GiB of latents.
LANES = 192


class Located(NamedTuple):
    """Where samples lie: row group [B] and row within it [B], both int64."""

    row_group: np.ndarray
    row: np.ndarray


class Epoch(NamedTuple):
    """One epoch's sequence.

    ``row_groups`` [R] in their order, ``starts`` [R + 1] where each begins in the sequence,
    ``lanes`` [L + 1] where each lane begins, ``windows`` [W + 1] where each window begins.
    """

    row_groups: np.ndarray
    starts: np.ndarray
    lanes: np.ndarray
    windows: np.ndarray


class Order:
    """The order of one stream.

    Args:
        row_groups: rows of each row group, in the order of the files.
        group_size, num_groups: of the batch, whatever the number of ranks.
        window: row groups whose samples are shuffled together.
        seed, stream: what the order is keyed by, beside the epoch.
        lanes: at most so many; part of what an order is.
    """

    def __init__(
        self,
        row_groups: Sequence[int],
        group_size: int,
        num_groups: int,
        window: int = 4,
        seed: int = 0,
        stream: int = 0,
        lanes: int = LANES,
    ):
        self.rows = np.asarray(row_groups, np.int64)
        self.count = int(self.rows.sum())
        self.group_size, self.num_groups, self.window = group_size, num_groups, window
        self.lanes = min(num_groups, lanes)
        self.key = seed, DATA, stream
        self._epochs: OrderedDict[int, Epoch] = OrderedDict()
        self._shuffles: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def locate(self, positions: np.ndarray) -> Located:
        """Positions [B] int64, from 0 -> where their samples lie."""
        row_group, row = np.empty_like(positions), np.empty_like(positions)
        epochs = positions // self.count
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            row_group[chosen], row[chosen] = self._locate(epoch, positions[chosen])
        return Located(row_group, row)

    def _locate(self, epoch: int, positions: np.ndarray) -> Located:
        """The same for positions of one epoch."""
        of = self._epoch(epoch)
        lane = positions // self.group_size % self.num_groups % self.lanes
        before = self._in_lane(positions, lane) - self._in_lane(epoch * self.count, lane)
        place = of.lanes[lane] + before
        windows = np.searchsorted(of.windows, place, side="right") - 1
        for window in np.unique(windows).tolist():
            chosen, start = windows == window, int(of.windows[window])
            size = int(of.windows[window + 1]) - start
            place[chosen] = start + self._shuffle(epoch, window, size)[place[chosen] - start]
        index = np.searchsorted(of.starts, place, side="right") - 1
        return Located(of.row_groups[index], place - of.starts[index])

    def _in_lane(self, position: np.ndarray | int, lane: np.ndarray) -> np.ndarray:
        """How many positions before this one belong to the lane."""
        size, lanes = self.group_size, self.lanes
        batches, rest = np.divmod(position, size * self.num_groups)
        group, inside = np.divmod(rest, size)
        # Of groups 0 to n - 1, those of the lane: ceil((n - lane) / lanes).
        a_batch = -((lane - self.num_groups) // lanes)
        whole = np.maximum(-((lane - group) // lanes), 0)
        return (batches * a_batch + whole) * size + inside * (group % lanes == lane)

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = self._arranged(epoch)
            if len(self._epochs) > KEPT_EPOCHS:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _arranged(self, epoch: int) -> Epoch:
        order = torch.randperm(len(self.rows), generator=generator_for(*self.key, epoch)).numpy()
        starts = np.concatenate([[0], np.cumsum(self.rows[order])])
        every = np.arange(self.lanes)
        first, end = epoch * self.count, (epoch + 1) * self.count
        lengths = self._in_lane(end, every) - self._in_lane(first, every)
        lanes = np.concatenate([[0], np.cumsum(lengths)])
        windows = [self._cuts(starts, lanes, lane) for lane in range(self.lanes)]
        return Epoch(order, starts, lanes, np.concatenate([*windows, [self.count]]))

    def _cuts(self, starts: np.ndarray, lanes: np.ndarray, lane: int) -> np.ndarray:
        """Where the windows of a lane begin.

        The first ones have fewer row groups, lane by lane: not all lanes need the next at once.
        """
        begin, end = lanes[lane], lanes[lane + 1]
        inside = starts[np.searchsorted(starts, begin, side="right") :]
        inside = inside[: np.searchsorted(inside, end)]
        return np.concatenate([[begin], inside[lane % self.window :: self.window]])

    def _shuffle(self, epoch: int, window: int, size: int) -> np.ndarray:
        """A permutation of a window's samples."""
        key = epoch, window
        if key not in self._shuffles:
            rng = generator_for(*self.key, epoch, window)
            self._shuffles[key] = torch.randperm(size, generator=rng).numpy()
            if len(self._shuffles) > 3 * self.lanes:
                self._shuffles.popitem(last=False)
        else:
            self._shuffles.move_to_end(key)
        return self._shuffles[key]
