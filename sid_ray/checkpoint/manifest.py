"""World-size-free training state <-> a directory.

    checkpoint_000000012800_000007-1f3a2b/   under the run's seventh lease (fence.py)
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

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sid_ray.checkpoint.parts import (
    DamagedCheckpointError,
    Parts,
    Row,
    load_average,
    whole_table,
)
from sid_ray.checkpoint.snapshot import (
    EMA_FOLDER,
    Part,
    Snapshot,
    StatefulRole,
    take_snapshot,
    write_snapshot,
)
from sid_ray.distributed.fragments import KINDS, gathered, world
from sid_ray.distributed.roles import Trainee
from sid_ray.errors import UserError
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.fence import MANIFEST, PREFIX, read_fence
from sid_ray.storage.store import Store
from sid_ray.weights.folder import WEIGHTS, ModelDescription

SCHEMA = 3
# In schema 1 each role was one file of whole tensors; 2 had no sizes of files.
READABLE = (1, 2, 3)
ROLES = ("fake_score", "generator")
DIGEST = "manifest_sha256"

__all__ = ["EMA_FOLDER", "MANIFEST", "PREFIX", "DamagedCheckpointError"]


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds.

    ``optimizer_steps`` counts updates a role, skipped ones left out. ``fragments`` is role ->
    file -> [parameter, offset, length], ``kinds`` role -> what is stored of each of them,
    ``sizes`` file -> bytes. A last field is the sha256 of all others.
    """

    schema: int
    images_seen: int
    config: str
    optimizer_steps: dict[str, int]
    files: dict[str, str]
    kinds: dict[str, list[str]] = field(default_factory=dict)
    fragments: dict[str, dict[str, list[Row]]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """A line a field: the table of fragments is long."""
        values = asdict(self)
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
        lines.append(f'  "{DIGEST}": "{digest_of(values)}"')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def digest_of(values: Mapping[str, Any]) -> str:
    """sha256 of a manifest's fields, in the order of the file."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def checkpoint_name(images_seen: int, attempt: str) -> str:
    """Sorts by images seen; the attempt keeps a cut upload apart from a later whole one."""
    return f"{PREFIX}{images_seen:012d}_{attempt}"


def images_seen_of(name: str) -> int:
    """The inverse of checkpoint_name, as far as it goes."""
    return int(name.removeprefix(PREFIX).split("_")[0])


def write_checkpoint(
    folder: Path,
    trainee: Trainee,
    roles: Mapping[str, StatefulRole],
    description: ModelDescription,
    config: str,
) -> None:
    """Writes this rank's files, and on rank 0 the manifest when all ranks have. A collective."""
    snapshot = take_snapshot(trainee, roles, description, config)
    parts = gathered(write_snapshot(folder, snapshot))
    if world()[0] == 0:
        (folder / MANIFEST).write_text(manifest_of(snapshot, parts).to_json())


def manifest_of(snapshot: Snapshot, parts: Sequence[Part]) -> Manifest:
    """The manifest of what all ranks wrote, the same on every rank."""
    files = {file: found for part in parts for file, found in sorted(part.files.items())}
    fragments: dict[str, dict[str, list[Row]]] = {
        name: {k: v for part in parts for k, v in part.fragments.get(name, {}).items()}
        for name in snapshot.roles
    }
    return Manifest(
        SCHEMA,
        snapshot.images_seen,
        snapshot.config,
        {name: role.optimizer_steps for name, role in snapshot.roles.items()},
        {file: digest for file, (digest, _) in files.items()},
        {name: list(role.kinds) for name, role in snapshot.roles.items()},
        fragments,
        {file: size for file, (_, size) in files.items()},
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest. Raises DamagedCheckpointError when it is missing, cut or of another schema."""
    try:
        text = (folder / MANIFEST).read_text()
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{folder.name}: {MANIFEST} is missing (cut while written)"
        ) from None
    return parse_manifest(text, folder.name)


def parse_manifest(text: str, name: str) -> Manifest:
    """The manifest out of its text; ``name`` is the checkpoint's.

    Raises DamagedCheckpointError when it is cut, changed or of another schema.
    """
    try:
        values = json.loads(text)
        digest = values.pop(DIGEST, "")
        manifest = Manifest(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{name}: {MANIFEST} is damaged ({error})") from None
    if manifest.schema not in READABLE:
        raise DamagedCheckpointError(
            f"{name}: schema {manifest.schema}, this version reads {', '.join(map(str, READABLE))}"
        )
    if manifest.schema > 1 and digest != digest_of(values):
        raise DamagedCheckpointError(
            f"{name}: {MANIFEST} is damaged (it does not match its own checksum)"
        )
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of a whole checkpoint. Raises DamagedCheckpointError that names the first bad
    file.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        damage = damage_of(folder / name, expected)
        if damage:
            raise DamagedCheckpointError(f"{folder.name}: {name} {damage}")
    return manifest


def damage_of(path: Path, expected: str) -> str:
    """What is wrong with a file whose sha256 should be this; empty for nothing."""
    if not path.is_file():
        return "is missing"
    return "" if file_sha256(path) == expected else "does not match its checksum"


def candidates(run_folder: Path) -> Iterator[Path]:
    """Checkpoint directories of a run that count, newest first."""
    fence = read_fence(Store.at(run_folder))
    found = [p for p in run_folder.glob(f"{PREFIX}*") if p.is_dir() and fence.accepts(p.name)]
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


def present(folder: Path, manifest: Manifest) -> frozenset[str]:
    """The manifest's files that are there with their sizes."""

    def size_of(path: Path) -> int:
        try:
            return path.stat().st_size
        except OSError:
            return -1

    return frozenset(f for f, size in manifest.sizes.items() if size_of(folder / f) == size)


def newest_listed(run_folder: Path) -> tuple[Path, Manifest] | None:
    """The newest checkpoint whose files are there with their sizes: found without reading them.

    What goes on from one checks more (restore.py).
    """
    for folder in candidates(run_folder):
        with contextlib.suppress(DamagedCheckpointError, OSError):
            manifest = read_manifest(folder)
            if present(folder, manifest) == manifest.sizes.keys():
                return folder, manifest
    return None


def load_checkpoint(folder: Path, trainee: Trainee, roles: Mapping[str, StatefulRole]) -> None:
    """Sets roles, averaged generator and images_seen from a checkpoint that verify() passed.

    Each rank reads only what it holds. A collective.
    """
    load_files(read_manifest(folder), lambda name: folder / name, trainee, roles)


def load_files(
    manifest: Manifest,
    where: Callable[[str], Path],
    trainee: Trainee,
    roles: Mapping[str, StatefulRole],
) -> None:
    """load_checkpoint for files that ``where`` finds, by their names in the checkpoint."""
    for name, role in roles.items():
        table = manifest.fragments.get(name) or whole_table(where, name)
        parts = Parts(where, table, manifest.kinds.get(name, KINDS), role.shapes)
        role.load(parts.read, manifest.optimizer_steps[name])
    load_average(trainee.generator_ema, where(f"{EMA_FOLDER}/{WEIGHTS}"))
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
        if damage:
            raise UserError(f"no whole checkpoint in {path}: {damage[0]}")
        if (path / "manifest.json").is_file():
            raise UserError(
                f"{path} is a prepared data set, which holds no network: name a run, a checkpoint "
                "or a network folder"
            )
        raise UserError(
            f"no whole checkpoint in {path}, and no network or picture; a run needs one checkpoint "
            "before it can generate"
        )
    return newest / EMA_FOLDER
