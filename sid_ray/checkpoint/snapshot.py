"""What one rank puts into a checkpoint: copied off the training in a moment, written at leisure.

``take_snapshot`` is a collective and stalls the training for as long as a copy takes;
``write_snapshot`` speaks to nobody and may run in a thread beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sid_ray.checkpoint.parts import Row, part_name, write_part
from sid_ray.distributed.fragments import Held, Read, Shapes, whole_state, world
from sid_ray.distributed.roles import Trainee
from sid_ray.tensor_files.stream import stream_safetensors
from sid_ray.weights.description import METADATA
from sid_ray.weights.folder import DESCRIPTION, WEIGHTS, ModelDescription

EMA_FOLDER = "generator_ema"


class StatefulRole(Protocol):
    """A role whose state can be read and set, in parts."""

    kinds: tuple[str, ...]

    @property
    def shapes(self) -> Shapes: ...

    def owned(self) -> list[Held]: ...

    def optimizer_steps(self) -> int: ...

    def load(self, read: Read, optimizer_steps: int) -> None: ...


@dataclass(frozen=True)
class RoleSnapshot:
    """The fragments of one role that this rank owns, in host memory."""

    owned: list[Held]
    kinds: tuple[str, ...]
    optimizer_steps: int


@dataclass(frozen=True)
class Snapshot:
    """One rank's share of a training state, apart from the training that goes on.

    ``average`` is the whole averaged generator on rank 0, None on the others.
    """

    rank: int
    images_seen: int
    config: str
    roles: dict[str, RoleSnapshot]
    average: dict[str, Tensor] | None
    description: ModelDescription


@dataclass(frozen=True)
class Part:
    """What a rank wrote: sha256 and size of each file, and role -> file -> what lies in it."""

    files: dict[str, tuple[str, int]]
    fragments: dict[str, dict[str, list[Row]]]


def copied(value: Tensor) -> Tensor:
    """A copy in host memory, also of a tensor that is there already."""
    value = value.detach()
    return value.clone() if value.device.type == "cpu" else value.cpu()


def take_snapshot(
    trainee: Trainee,
    roles: Mapping[str, StatefulRole],
    description: ModelDescription,
    config: str,
) -> Snapshot:
    """Copies this rank's share of the state. A collective: the average is gathered on rank 0."""
    rank, _ = world()
    taken = {}
    for name, role in roles.items():
        owned = [
            Held(held.fragment, {kind: copied(held.values[kind]) for kind in role.kinds})
            for held in role.owned()
        ]
        taken[name] = RoleSnapshot(owned, role.kinds, role.optimizer_steps())
    average: dict[str, Tensor] | None = {} if rank == 0 else None
    for name, value in whole_state(trainee.generator_ema):
        if average is not None:
            average[name] = copied(value)
    return Snapshot(rank, trainee.images_seen, config, taken, average, description)


def write_snapshot(folder: Path, snapshot: Snapshot) -> Part:
    """Writes one rank's files. Folders of several ranks may be one.

    Raises OSError, for one when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, tuple[str, int]] = {}
    rows: dict[str, dict[str, list[Row]]] = {}
    for name, role in snapshot.roles.items():
        if role.owned:
            file = part_name(name, snapshot.rank)
            digest, table = write_part(folder / file, role.owned, role.kinds)
            files[file] = digest, (folder / file).stat().st_size
            rows[name] = {file: table}
    if snapshot.average is not None:
        written = write_average(folder / EMA_FOLDER, snapshot.average, snapshot.description)
        files |= {f"{EMA_FOLDER}/{file}": found for file, found in written.items()}
    return Part(files, rows)


def write_weights(path: Path, weights: Mapping[str, Tensor], description: ModelDescription) -> str:
    """A network as one file that describes itself; its sha256, by which scores name it."""
    shapes = {name: (value.shape, value.dtype) for name, value in weights.items()}
    return stream_safetensors(path, shapes, weights.items(), {METADATA: description.to_json()})


def write_average(
    folder: Path, average: Mapping[str, Tensor], description: ModelDescription
) -> dict[str, tuple[str, int]]:
    """The averaged generator as a network by itself; (sha256, size) by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    text, path = description.to_json(), folder / WEIGHTS
    digest = write_weights(path, average, description)
    (folder / DESCRIPTION).write_text(text)
    return {
        WEIGHTS: (digest, path.stat().st_size),
        DESCRIPTION: (hashlib.sha256(text.encode()).hexdigest(), len(text.encode())),
    }
