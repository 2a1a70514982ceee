"""A data set's samples by their number: its pictures from first to last, its prompts at places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sid_ray.data.decode import gather
from sid_ray.data.manifest import DataManifest
from sid_ray.data.order import Located
from sid_ray.data.reader import THREADS
from sid_ray.data.row_groups import RowGroups
from sid_ray.errors import UserError
from sid_ray.storage.errors import StoreError
from sid_ray.storage.store import Store

PATIENCE_S = 60.0  # for a store, where no training waits


def column_at(store: Store, manifest: DataManifest, index: np.ndarray, column: str) -> list[Any]:
    """One column of the samples ``index`` [B]; reads their row groups, several at once.

    Raises UserError where they cannot be read now.
    """
    rows = RowGroups(store, manifest, give_up_s=PATIENCE_S)
    groups = np.searchsorted(rows.starts, index, side="right") - 1

    def part(group: int) -> tuple[np.ndarray, Any]:
        chosen = np.nonzero(groups == group)[0]
        here = Located(groups[chosen], index[chosen] - rows.starts[group])
        table = {group: rows.read(group, (column,))}
        return chosen, getattr(gather(table, here, (column,), manifest, rows.where), column)

    parts: list[Any] = [None] * len(groups)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for chosen, found in pool.map(part, np.unique(groups).tolist()):
                for place, value in zip(chosen.tolist(), found, strict=True):
                    parts[place] = value
    except StoreError as error:
        raise UserError(f"data.source: {error}") from None
    finally:
        rows.close()
    return parts


def pictures_of_set(
    store: Store, manifest: DataManifest, tell: Callable[[str], None] = lambda text: None
) -> Iterator[Tensor]:
    """All images of a prepared set, uint8 [rows, C, H, W] a row group.

    ``tell`` hears of a store that does not answer. Raises DamagedDataError, StoreError.
    """
    rows = RowGroups(store, manifest, tell, give_up_s=10 * PATIENCE_S)
    try:
        for group, count in enumerate(rows.rows.tolist()):
            here = Located(np.full(count, group), np.arange(count))
            table = {group: rows.read(group, ("image",))}
            found = gather(table, here, ("image",), manifest, rows.where).image
            yield torch.from_numpy(found)
    finally:
        rows.close()


def in_blocks(parts: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The same samples in order, ``size`` at a time; the last ones may be fewer."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= size:
            *whole, rest = torch.cat(held).split(size)
            held = [rest]
            yield from whole
            if len(rest) == size:
                yield held.pop()
    if held:
        yield torch.cat(held)
