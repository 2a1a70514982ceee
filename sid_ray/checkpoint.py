"""World-size-free training state <-> a directory.

    checkpoint_000000012800_1f3a/
        manifest.json                     written last: schema, config, images_seen, sha256 of each
                                          file, and which part of which parameter lies where
        fake_score.rank0000.safetensors   NAME/master, NAME/exp_avg, NAME/exp_avg_sq, float32, flat:
        generator.rank0000.safetensors    the fragments that this rank owned
        generator_ema/model.safetensors   the averaged generator, directly usable
        generator_ema/model.json

A directory without a whole manifest, or with a file that does not match it, is damaged: it is named
and the one before it is used. No random state is stored: draws are keyed by images_seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from sid_ray.checkpoint_parts import (
    DamagedCheckpointError,
    Parts,
    Row,
    load_average,
    part_name,
    whole_table,
    write_average,
    write_part,
)
from sid_ray.errors import UserError
from sid_ray.fragments import KINDS, Held, Read, Shapes, gathered, world
from sid_ray.step import Trainee
from sid_ray.weights.folder import DESCRIPTION, ModelDescription

SCHEMA = 2
READABLE = (1, 2)  # in schema 1 each role was one file of whole tensors
MANIFEST = "manifest.json"
EMA_FOLDER = "generator_ema"
ROLES = ("fake_score", "generator")
PREFIX = "checkpoint_"
DIGEST = "manifest_sha256"

__all__ = ["DamagedCheckpointError"]


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds.

    ``optimizer_steps`` counts updates a role, skipped ones left out. ``fragments`` is role -> file
    -> [parameter, offset, length], ``kinds`` role -> what is stored of each of them. A last field
    is the sha256 of all others.
    """

    schema: int
    images_seen: int
    config: str
    optimizer_steps: dict[str, int]
    files: dict[str, str]
    kinds: dict[str, list[str]] = field(default_factory=dict)
    fragments: dict[str, dict[str, list[Row]]] = field(default_factory=dict)

    def to_json(self) -> str:
        """A line a field: the table of fragments is long."""
        lines = [f"  {json.dumps(name)}: {json.dumps(v)}" for name, v in asdict(self).items()]
        lines.append(f'  "{DIGEST}": "{self.digest()}"')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


class StatefulRole(Protocol):
    """A role whose state can be read and set, in parts."""

    kinds: tuple[str, ...]

    @property
    def shapes(self) -> Shapes: ...

    def owned(self) -> list[Held]: ...

    def optimizer_steps(self) -> int: ...

    def load(self, read: Read, optimizer_steps: int) -> None: ...


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_name(images_seen: int, attempt: str) -> str:
    """Sorts by images seen; the attempt keeps a cut upload apart from a later whole one."""
    return f"{PREFIX}{images_seen:012d}_{attempt}"


def write_checkpoint(
    folder: Path,
    trainee: Trainee,
    roles: Mapping[str, StatefulRole],
    description: ModelDescription,
    config: str,
) -> None:
    """Writes this rank's files, and on rank 0 what there is once. A collective.

    The folders of all ranks may be one or, where they are uploaded into one, each rank's own.
    """
    rank, _ = world()
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    rows: dict[str, dict[str, list[Row]]] = {}
    for name, role in roles.items():
        file = part_name(name, rank)
        owned = role.owned()
        if owned:
            files[file], table = write_part(folder / file, owned, role.kinds)
            rows[name] = {file: table}
    average = write_average(folder / EMA_FOLDER, trainee.generator_ema, description, rank)
    files |= {f"{EMA_FOLDER}/{file}": digest for file, digest in average.items()}
    if rank == 0:
        model_json = f"{EMA_FOLDER}/{DESCRIPTION}"
        files[model_json] = sha256(folder / model_json)
    every = gathered((files, rows))  # when all ranks have written
    if rank > 0:
        return
    fragments = {
        name: {k: v for _, theirs in every for k, v in theirs.get(name, {}).items()}
        for name in roles
    }
    manifest = Manifest(
        SCHEMA,
        trainee.images_seen,
        config,
        {name: role.optimizer_steps() for name, role in roles.items()},
        {file: digest for theirs, _ in every for file, digest in sorted(theirs.items())},
        {name: list(role.kinds) for name, role in roles.items()},
        fragments,
    )
    (folder / MANIFEST).write_text(manifest.to_json())


def read_manifest(folder: Path) -> Manifest:
    """The manifest. Raises DamagedCheckpointError when it is missing, cut or of another schema."""
    try:
        values = json.loads((folder / MANIFEST).read_text())
        digest = values.pop(DIGEST, "")
        manifest = Manifest(**values)
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{folder.name}: {MANIFEST} is missing (cut while written)"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{folder.name}: {MANIFEST} is damaged ({error})") from None
    if manifest.schema not in READABLE:
        raise DamagedCheckpointError(
            f"{folder.name}: schema {manifest.schema}, this version reads "
            f"{' and '.join(map(str, READABLE))}"
        )
    if manifest.schema > 1 and digest != manifest.digest():
        raise DamagedCheckpointError(
            f"{folder.name}: {MANIFEST} is damaged (it does not match its own checksum)"
        )
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of a whole checkpoint. Raises DamagedCheckpointError that names the first bad
    file.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpointError(f"{folder.name}: {name} is missing")
        if sha256(path) != expected:
            raise DamagedCheckpointError(f"{folder.name}: {name} does not match its checksum")
    return manifest


def candidates(run_folder: Path) -> Iterator[Path]:
    """Checkpoint directories of a run, newest first."""
    found = [path for path in run_folder.glob(f"{PREFIX}*") if path.is_dir()]
    # Ray keeps checkpoint_manager_snapshot.json beside them.
    yield from sorted(found, reverse=True)


def newest_whole(run_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole (None for none), and what was wrong with newer ones."""
    damage: list[str] = []
    for folder in candidates(run_folder):
        try:
            verify(folder)
            return folder, damage
        except DamagedCheckpointError as error:
            damage.append(str(error))
    return None, damage


def load_checkpoint(folder: Path, trainee: Trainee, roles: Mapping[str, StatefulRole]) -> None:
    """Sets roles, averaged generator and images_seen from a checkpoint that verify() passed.

    Each rank reads only what it holds. A collective.
    """
    manifest = read_manifest(folder)
    for name, role in roles.items():
        table = manifest.fragments.get(name) or whole_table(folder, name)
        parts = Parts(folder, table, manifest.kinds.get(name, KINDS), role.shapes)
        role.load(parts.read, manifest.optimizer_steps[name])
    load_average(trainee.generator_ema, folder / EMA_FOLDER)
    trainee.images_seen = manifest.images_seen


def find_generator(path: Path) -> Path:
    """The network folder behind a run, a checkpoint or a network folder.

    Raises UserError when there is none.
    """
    if (path / "model.json").is_file():
        return path
    if (path / EMA_FOLDER / "model.json").is_file():
        return path / EMA_FOLDER
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run, a checkpoint or a network folder")
    newest, damage = newest_whole(path)
    if newest is None:
        why = f": {damage[0]}" if damage else "; a run needs one checkpoint before it can generate"
        raise UserError(f"no whole checkpoint in {path}{why}")
    return newest / EMA_FOLDER
