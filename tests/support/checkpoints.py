"""Checkpoints on a disk by their paths, for tests: written, read and looked for as runs do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sid_ray.checkpoint import find
from sid_ray.checkpoint.manifest import MANIFEST, Manifest, joined_manifest, load_files
from sid_ray.checkpoint.snapshot import StatefulRole, take_snapshot, write_snapshot
from sid_ray.distributed.fragments import gathered, world
from sid_ray.distributed.roles import Trainee
from sid_ray.storage.store import Store
from sid_ray.weights.folder import ModelDescription


def newest_whole(run: Path | str) -> tuple[Path | None, list[str]]:
    name, damage = find.newest_whole(Store.at(run))
    return (Path(run) / name if name else None), damage


def read_manifest(folder: Path) -> Manifest:
    return find.manifest_of(Store.at(folder.parent), folder.name)


def verify(folder: Path) -> Manifest:
    return find.verify(Store.at(folder.parent), folder.name)


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
        (folder / MANIFEST).write_text(joined_manifest(snapshot, parts).to_json())


def load_checkpoint(folder: Path, trainee: Trainee, roles: Mapping[str, StatefulRole]) -> None:
    """A collective."""
    load_files(read_manifest(folder), lambda name: folder / name, trainee, roles)
