"""What one rank puts into a checkpoint: copied off the training in a moment, written at leisure.

``take_snapshot`` is a collective. From CPU memory it stalls the training for as long as a copy
takes; from a GPU it has the state copied beside the training (copies.py). ``write_snapshot`` speaks
to nobody and may run in a thread beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sid_ray.checkpoint.copies import Copies
from sid_ray.checkpoint.parts import Row, part_name, write_part
from sid_ray.denoisers.adapter_names import names_in_file
from sid_ray.distributed.fragments import Held, Read, Shapes, whole_state, world
from sid_ray.distributed.roles import Trainee
from sid_ray.tensor_files.stream import stream_safetensors
from sid_ray.weights.description import file_metadata
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
    """The fragments of one role that this rank owns, in host memory or on their way there."""

    owned: list[Held]
    kinds: tuple[str, ...]
    optimizer_steps: int


@dataclass(frozen=True)
class Snapshot:
    """One rank's share of a training state, apart from the training that goes on.

    ``average`` is the whole averaged generator on rank 0, None on the others. What is copied can be
    read once ``copies.wait`` has returned.
    """

    rank: int
    images_seen: int
    config: str
    roles: dict[str, RoleSnapshot]
    average: dict[str, Tensor] | None
    description: ModelDescription
    copies: Copies


@dataclass(frozen=True)
class Part:
    """What a rank wrote: sha256 and size of each file, and role -> file -> what lies in it."""

    files: dict[str, tuple[str, int]]
    fragments: dict[str, dict[str, list[Row]]]


def take_snapshot(
    trainee: Trainee,
    roles: Mapping[str, StatefulRole],
    description: ModelDescription,
    config: str,
    copies: Copies | None = None,
) -> Snapshot:
    """Copies this rank's share of the state. A collective: the average is gathered on rank 0.

    ``copies``: where the state is on a GPU. They are used again: the snapshot before this one must
    be written by now, and ``copies.hold`` comes before the next update.
    """
    rank, _ = world()
    copies = copies or Copies()
    # The host reads these: before the copies, behind which it would stand.
    steps = {name: role.optimizer_steps() for name, role in roles.items()}
    copies.begin()
    # First what the training waits for: copies come one after the other.
    average: dict[str, Tensor] | None = {} if rank == 0 else None
    for name, value in whole_state(trainee.generator_ema):
        if average is not None:
            average[name] = copies.of(value, lasting=False)
    taken = {}
    for name, role in roles.items():
        owned = [
            Held(
                held.fragment,
                {kind: copies.of(held.values[kind], held.lasting) for kind in role.kinds},
            )
            for held in role.owned()
        ]
        taken[name] = RoleSnapshot(owned, role.kinds, steps[name])
    copies.end()
    return Snapshot(rank, trainee.images_seen, config, taken, average, description, copies)


def write_snapshot(folder: Path, snapshot: Snapshot) -> Part:
    """Writes one rank's files. Folders of several ranks may be one.

    Raises OSError, for one when the disk is full.
    """
    snapshot.copies.wait()
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
    named = dict(names_in_file(weights.items()) if description.adapter else weights.items())
    shapes = {name: (value.shape, value.dtype) for name, value in named.items()}
    return stream_safetensors(path, shapes, named.items(), file_metadata(description, named))


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
