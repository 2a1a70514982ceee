"""World-size-free training state <-> a directory.

    checkpoint_000000012800_1f3a/
        manifest.json                     written last: schema, config, images_seen, sha256 of each
        file fake_score.safetensors            name/master, name/exp_avg, name/exp_avg_sq, float32
        generator.safetensors
        generator_ema/model.safetensors   the averaged generator, directly usable
        generator_ema/model.json

A directory without a whole manifest, or with a file that does not match it, is damaged: it is named
and the one before it is used. No random state is stored: draws are keyed by images_seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file

from sid_ray.roles import RoleState
from sid_ray.errors import UserError
from sid_ray.step import Trainee
from sid_ray.weights.folder import (
    ModelDescription,
    load_weights,
    save_model,
    write_safetensors,
)

SCHEMA = 1
MANIFEST = "manifest.json"
EMA_FOLDER = "generator_ema"
ROLES = ("fake_score", "generator")
PREFIX = "checkpoint_"


class DamagedCheckpointError(Exception):
    """A checkpoint that is incomplete or does not match its manifest; says which file and how."""


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds. ``optimizer_steps`` counts updates a role, skipped ones left
    out.
    """

    schema: int
    images_seen: int
    config: str
    optimizer_steps: dict[str, int]
    files: dict[str, str]


class StatefulRole(Protocol):
    """A role whose state can be read and set."""

    def state(self) -> RoleState: ...

    def load_state(self, state: RoleState) -> None: ...


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_name(images_seen: int, attempt: str) -> str:
    """Sorts by images seen; the attempt keeps a cut upload apart from a later whole one."""
    return f"{PREFIX}{images_seen:012d}_{attempt}"


def write_checkpoint(
    folder: Path,
    states: dict[str, RoleState],
    trainee: Trainee,
    description: ModelDescription,
    config: str,
) -> None:
    """Writes a checkpoint; ``states`` holds the gathered state of each role."""
    folder.mkdir(parents=True, exist_ok=True)
    for role, state in states.items():
        write_safetensors(folder / f"{role}.safetensors", state.tensors)
    save_model(folder / EMA_FOLDER, trainee.generator_ema.state_dict(), description)
    files = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    steps = {role: state.optimizer_steps for role, state in states.items()}
    manifest = Manifest(SCHEMA, trainee.images_seen, config, steps, files)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest. Raises DamagedCheckpointError when it is missing, cut or of another schema."""
    try:
        values = json.loads((folder / MANIFEST).read_text())
        manifest = Manifest(**values)
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{folder.name}: {MANIFEST} is missing (cut while written)"
        ) from None
    except (ValueError, TypeError) as error:
        raise DamagedCheckpointError(f"{folder.name}: {MANIFEST} is damaged ({error})") from None
    if manifest.schema != SCHEMA:
        raise DamagedCheckpointError(
            f"{folder.name}: schema {manifest.schema}, this version reads {SCHEMA}"
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
    """Sets roles, averaged generator and images_seen from a checkpoint that verify() passed."""
    manifest = read_manifest(folder)
    for name, role in roles.items():
        try:
            tensors = load_file(folder / f"{name}.safetensors")
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpointError(f"{folder.name}: {name}: {error}") from error
        role.load_state(RoleState(tensors, manifest.optimizer_steps[name]))
    load_weights(trainee.generator_ema, folder / EMA_FOLDER / "model.safetensors")
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
