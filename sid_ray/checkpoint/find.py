"""What a run has in storage, wherever that is: its newest checkpoint, its generator.

The one place where checkpoints are looked for. A run on a disk is read where it lies. Of a run
elsewhere the averaged generator alone is fetched, to CACHE/generators/KEY/CHECKPOINT/generator_ema,
and checked against the checkpoint's manifest. What a run goes on from is chosen among these names
by all its ranks together (restore.py).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from sid_ray.checkpoint.best import ALIAS, find_best
from sid_ray.checkpoint.manifest import (
    EMA_FOLDER,
    MANIFEST,
    PREFIX,
    DamagedCheckpointError,
    Manifest,
    damage_of,
    parse_manifest,
)
from sid_ray.errors import UserError
from sid_ray.storage.cache import DamagedFileError, fetch_checked, folder_of
from sid_ray.storage.errors import StoreError
from sid_ray.storage.fence import IDENTITY, Fence, read_fence
from sid_ray.storage.store import Store
from sid_ray.weights.description import DESCRIPTION, WEIGHTS
from sid_ray.weights.sources import resolve_source

# Names --------------------------------------------------------------------------------------------


def checkpoints(run: Store, fence: Fence | None = None) -> list[str]:
    """Names of checkpoints that count, whole or not, newest first. Raises StoreError.

    ``fence``: what counts; that of the run's newest lease where it is not given.
    """
    counts = fence or read_fence(run)
    found = (name for name in run.folders() if name.startswith(PREFIX) and counts.accepts(name))
    return sorted(found, reverse=True)


def sealed(run: Store, fence: Fence) -> list[str]:
    """Names of those that have a manifest: it is written last.

    Raises OSError where they cannot be listed: a missing folder or bucket is no empty one.
    """
    names = checkpoints(run, fence)
    if not names:
        run.look()
    return [name for name in names if run.size(f"{name}/{MANIFEST}") is not None]


# Whether they are whole ---------------------------------------------------------------------------


def manifest_of(run: Store, name: str) -> Manifest:
    """Raises DamagedCheckpointError, StoreError."""
    try:
        return parse_manifest(run.read_text(f"{name}/{MANIFEST}"), name)
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{name}: {MANIFEST} is missing (cut while written)") from None
    except UnicodeDecodeError:
        raise DamagedCheckpointError(f"{name}: {MANIFEST} is damaged") from None
    except StoreError:
        raise
    except OSError as error:  # of a disk: waiting does not mend it
        raise DamagedCheckpointError(f"{name}: {MANIFEST} cannot be read ({error})") from None


def present(run: Store, name: str, manifest: Manifest) -> frozenset[str]:
    """The manifest's files that are there with their sizes. Raises StoreError."""
    there = (run / name).files()
    return frozenset(file for file, size in manifest.sizes.items() if there.get(file) == size)


def newest_listed(run: Store) -> tuple[str, Manifest] | None:
    """The newest checkpoint whose files are there with their sizes: found without reading them.

    Its name and manifest. What goes on from one checks more (restore.py). Raises StoreError.
    """
    for name in checkpoints(run):
        with contextlib.suppress(DamagedCheckpointError, FileNotFoundError):
            manifest = manifest_of(run, name)
            if present(run, name, manifest) == manifest.sizes.keys():
                return name, manifest
    return None


def verify(run: Store, name: str) -> Manifest:
    """The manifest of a whole checkpoint. On a disk every byte is read; where the store keeps
    checksums of its own, names and sizes count.

    Raises DamagedCheckpointError that names the first bad file, StoreError.
    """
    manifest = manifest_of(run, name)
    there = present(run, name, manifest) if run.scheme.keeps_checksums else frozenset()
    for file, digest in manifest.files.items():
        if run.scheme.keeps_checksums:
            damage = "" if file in there or not manifest.sizes else "is missing or cut"
        elif run.is_local:
            damage = damage_of(run.folder / name / file, digest)
        elif run.size(f"{name}/{file}") is None:
            damage = "is missing"
        else:
            same = run.sha256(f"{name}/{file}") == digest
            damage = "" if same else "does not match its checksum"
        if damage:
            raise DamagedCheckpointError(f"{name}: {file} {damage}")
    return manifest


def newest_whole(run: Store) -> tuple[str | None, list[str]]:
    """The name of the newest whole checkpoint, and what was wrong with newer ones."""
    damage: list[str] = []
    for name in checkpoints(run):
        try:
            verify(run, name)
            return name, damage
        except DamagedCheckpointError as error:
            damage.append(str(error))
    return None, damage


# Generators ---------------------------------------------------------------------------------------


def find_generator(source: str | Path) -> Path:
    """The network folder behind a run, a checkpoint or a network folder, on this machine's disk.

    RUN/best is the run's best so far by its score. Raises UserError when there is none, or when its
    store fails.
    """
    if best := best_network_of(str(source)):
        return resolve_source(best)
    place = Store.at(source)
    if place.is_local:
        if (place.folder / DESCRIPTION).is_file():
            return place.folder
        if not place.folder.exists():
            raise UserError(
                f"{source} does not exist; name a run, a checkpoint or a network folder"
            )
    try:
        found = generator_in(place, str(source))
    except StoreError as error:
        raise UserError(str(error)) from None
    return found or resolve_source(place.url)


def generator_in(place: Store, source: str) -> Path | None:
    """That of a checkpoint, or of a run's newest whole one; None where it may be a network.

    Raises UserError, StoreError.
    """
    if place.size(f"{EMA_FOLDER}/{DESCRIPTION}") is not None:
        if place.is_local:
            return place.folder / EMA_FOLDER
        try:
            return fetch_generator(Store(place.url.rpartition("/")[0]), place.name)
        except (DamagedCheckpointError, DamagedFileError) as error:
            raise UserError(f"{source} is damaged ({error}); name another checkpoint") from None
    damage: list[str] = []
    for name in checkpoints(place):
        try:
            if not place.is_local:
                return fetch_generator(place, name)
            verify(place, name)
            return place.folder / name / EMA_FOLDER
        except (DamagedCheckpointError, DamagedFileError) as error:
            damage.append(str(error))
    if damage:
        raise UserError(f"no whole checkpoint in {source}: {damage[0]}")
    if place.size(MANIFEST) is not None:
        raise UserError(
            f"{source} is a prepared data set, which holds no network: name a run, a checkpoint or "
            "a network folder"
        )
    if place.is_local or place.size(IDENTITY) is not None:
        what = "" if place.size(IDENTITY) is not None else ", and no network or picture"
        raise UserError(
            f"no whole checkpoint in {source}{what}; a run needs one checkpoint before it can "
            "generate"
        )
    return None


def best_network_of(source: str) -> str:
    """The address of the network behind RUN/best; empty where the source is not that.

    Raises UserError where the run has none.
    """
    above, _, last = source.rstrip("/").rpartition("/")
    if last != ALIAS or not above:
        return ""
    run = Store.at(above)
    if run.is_local and (run.folder / ALIAS).exists():  # a folder of that very name
        return ""
    try:
        name = find_best(run)
    except StoreError as error:
        raise UserError(str(error)) from None
    if name is None:
        raise UserError(f"{above} has no best generator: none of its weights was scored yet")
    return (run / name).url


def fetch_generator(run: Store, name: str) -> Path:
    """A checkpoint's averaged generator in the cache.

    Raises DamagedCheckpointError, DamagedFileError, StoreError.
    """
    manifest = manifest_of(run, name)
    folder = folder_of(run / name, "generators")
    for leaf in (WEIGHTS, DESCRIPTION):
        file = f"{EMA_FOLDER}/{leaf}"
        digest = manifest.files.get(file)
        if digest is None:
            raise DamagedCheckpointError(f"{name}: {file} is missing")
        try:  # what is there is read again: the cache outlives what it was fetched for
            fetch_checked(run / name, file, folder / file, digest)
        except FileNotFoundError:
            raise DamagedCheckpointError(f"{name}: {file} is missing") from None
    return folder / EMA_FOLDER
