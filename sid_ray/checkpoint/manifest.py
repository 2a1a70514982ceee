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

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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
)
from sid_ray.distributed.fragments import KINDS
from sid_ray.distributed.roles import Trainee
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.fence import MANIFEST, PREFIX
from sid_ray.weights.folder import WEIGHTS

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


def joined_manifest(snapshot: Snapshot, parts: Sequence[Part]) -> Manifest:
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


def damage_of(path: Path, expected: str) -> str:
    """What is wrong with a file whose sha256 should be this; empty for nothing."""
    if not path.is_file():
        return "is missing"
    return "" if file_sha256(path) == expected else "does not match its checksum"


def load_files(
    manifest: Manifest,
    where: Callable[[str], Path],
    trainee: Trainee,
    roles: Mapping[str, StatefulRole],
) -> None:
    """Sets roles, averaged generator and images_seen from a checkpoint that was found whole.

    ``where`` finds its files by their names. Each rank reads only what it holds. A collective.
    """
    for name, role in roles.items():
        table = manifest.fragments.get(name) or whole_table(where, name)
        parts = Parts(where, table, manifest.kinds.get(name, KINDS), role.shapes)
        role.load(parts.read, manifest.optimizer_steps[name])
    load_average(trainee.generator_ema, where(f"{EMA_FOLDER}/{WEIGHTS}"))
    trainee.images_seen = manifest.images_seen
