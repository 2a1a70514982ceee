"""The files of a checkpoint: who writes what, and how any rank reads the slices it needs.

Every rank writes the fragments it owns of each role, ``ROLE.rankNNNN.safetensors``; the manifest's
table says which range of which parameter lies in which file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sid_ray.denoisers.adapter_names import name_in_file
from sid_ray.distributed.fragments import (
    EXP_AVG,
    MASTER,
    Fragment,
    Held,
    Shapes,
    ShardedAverage,
)
from sid_ray.errors import UserError
from sid_ray.tensor_files.stream import flat_slice, stream_safetensors
from sid_ray.weights.folder import load_weights

Row = tuple[str, int, int]  # parameter, offset, length
Table = Mapping[str, Sequence[Row]]  # file name -> what lies in it


class DamagedCheckpointError(Exception):
    """A checkpoint that is incomplete or does not match its manifest; says which file and how."""


def part_name(role: str, rank: int) -> str:
    return f"{role}.rank{rank:04d}.safetensors"


def write_part(path: Path, owned: Sequence[Held], kinds: Sequence[str]) -> tuple[str, list[Row]]:
    """Writes one rank's fragments of one role, one at a time; (sha256, the table's rows)."""

    def values():
        for held in owned:
            for kind in kinds:
                yield f"{held.fragment.name}/{kind}", held.values[kind]

    shapes: dict[str, tuple[Sequence[int], torch.dtype]] = {
        f"{held.fragment.name}/{kind}": ((held.fragment.length,), held.values[kind].dtype)
        for held in owned
        for kind in kinds
    }
    return stream_safetensors(path, shapes, values()), [held.fragment[:] for held in owned]


Where = Callable[[str], Path]  # a file's path, by its name in the checkpoint


def whole_table(where: Where, role: str) -> dict[str, list[Row]]:
    """The table of a checkpoint of schema 1, whose roles are one file of whole tensors each."""
    name = f"{role}.safetensors"
    with opened_part(where(name)) as file:
        masters = [key for key in file.keys() if key.endswith(f"/{MASTER}")]  # noqa: SIM118
        sizes = {key: prod(file.get_slice(key).get_shape()) for key in masters}
    return {name: [(key.removesuffix(f"/{MASTER}"), 0, size) for key, size in sizes.items()]}


def opened_part(path: Path) -> Any:
    """An open safetensors file. Raises DamagedCheckpointError, which names it."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error


class Parts:
    """The fragments of one role in a checkpoint, whatever ranks wrote them.

    ``stored`` are the kinds in the files. Raises DamagedCheckpointError where a parameter's
    fragments are not all of it.
    """

    def __init__(self, where: Where, table: Table, stored: Sequence[str], shapes: Shapes):
        self.where, self.stored, self._files = where, stored, dict[str, Any]()
        self._rows: dict[str, list[tuple[int, int, str]]] = {}
        for file, rows in table.items():
            for name, offset, length in rows:
                self._rows.setdefault(name, []).append((offset, length, file))
        for name, shape in shapes.items():
            end = 0
            for offset, length, _ in sorted(self._rows.get(name, ())):
                if offset != end:
                    break
                end += length
            if end != prod(shape) or len(self._rows) != len(shapes):
                raise DamagedCheckpointError(
                    f"the checkpoint's parts hold {end} of {prod(shape)} elements of {name}, "
                    f"and {len(self._rows)} of {len(shapes)} parameters"
                )

    def read(self, fragment: Fragment, kind: str) -> Tensor:
        """Any range of a parameter, flat, out of as many files as it lies in."""
        name, start, length = fragment
        if kind == EXP_AVG and kind not in self.stored:
            return torch.zeros(length)
        pieces = []
        for offset, size, file in sorted(self._rows[name]):
            first, last = max(start, offset), min(start + length, offset + size)
            if first < last:
                key = f"{name}/{kind}"
                pieces.append(flat_slice(self._file(file), key, first - offset, last - first))
        return torch.cat(pieces)

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = opened_part(self.where(name))
        return self._files[name]


def load_average(average: nn.Module, path: Path) -> None:
    """Sets an averaged generator, sharded or not, from its weights."""
    if not isinstance(average, ShardedAverage):
        load_weights(average, path)
        return
    with opened_part(path) as file:
        for held in average.held():
            own, offset, length = held.fragment
            name = name_in_file(own)
            found = list(file.get_slice(name).get_shape())
            if found != list(average.shapes[own]):
                raise UserError(f"{path}: {name} has shape {found}")
            held.values[MASTER].copy_(flat_slice(file, name, offset, length))
        for name, value in average.fixed.items():
            if not torch.equal(file.get_tensor(name), value.cpu()):
                raise UserError(f"{path}: {name} is not that of the teacher")
