"""What a run has in storage, wherever that is: its newest checkpoint, its generator.

A run on a disk is read where it lies. Of a run in S3 the averaged generator alone is fetched, to
CACHE/generators/KEY/CHECKPOINT/generator_ema, and checked against the checkpoint's manifest.
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
    parse_manifest,
)
from sid_ray.checkpoint.manifest import find_generator as find_generator_on_disk
from sid_ray.checkpoint.manifest import newest_listed as newest_listed_on_disk
from sid_ray.checkpoint.manifest import newest_whole as newest_whole_on_disk
from sid_ray.errors import UserError
from sid_ray.storage.cache import DamagedFileError, fetch_checked, folder_of
from sid_ray.storage.errors import StoreError, is_s3
from sid_ray.storage.fence import read_fence
from sid_ray.storage.places import expanded
from sid_ray.storage.store import Store
from sid_ray.weights.description import DESCRIPTION, WEIGHTS
from sid_ray.weights.sources import resolve_source


def newest_listed(run: Store) -> tuple[str, Manifest] | None:
    """The newest checkpoint whose files are there with their sizes: found without reading them.

    Its name and manifest. What goes on from one checks more (restore.py). Raises StoreError.
    """
    if run.is_local:
        found = newest_listed_on_disk(run.folder)
        return (found[0].name, found[1]) if found else None
    sizes = run.files()
    for name in checkpoints(run):
        with contextlib.suppress(DamagedCheckpointError, FileNotFoundError):
            manifest = manifest_of(run, name)
            there = {file: sizes.get(f"{name}/{file}") for file in manifest.sizes}
            if there == manifest.sizes:
                return name, manifest
    return None


def newest_whole(run: Store) -> tuple[str | None, list[str]]:
    """The name of the newest whole checkpoint, and what was wrong with newer ones.

    On a disk every byte is read. In S3, which keeps checksums of its own, names and sizes count.
    """
    if run.is_local:
        newest, damage = newest_whole_on_disk(run.folder)
        return (newest.name if newest else None), damage
    found = newest_listed(run)
    return (found[0] if found else None), []


def checkpoints(run: Store) -> list[str]:
    """Names of checkpoints that count, whole or not, newest first. Raises StoreError."""
    fence = read_fence(run)
    found = (name for name in run.folders() if name.startswith(PREFIX) and fence.accepts(name))
    return sorted(found, reverse=True)


def manifest_of(run: Store, name: str) -> Manifest:
    """Raises DamagedCheckpointError, StoreError."""
    try:
        return parse_manifest(run.read_text(f"{name}/{MANIFEST}"), name)
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{name}: {MANIFEST} is missing (cut while written)") from None
    except UnicodeDecodeError:
        raise DamagedCheckpointError(f"{name}: {MANIFEST} is damaged") from None


def find_generator(source: str | Path) -> Path:
    """The network folder behind a run, a checkpoint or a network folder, on this machine's disk.

    RUN/best is the run's best so far by its score. Raises UserError when there is none, or when its
    store fails.
    """
    if best := best_of(str(source)):
        return resolve_source(best)
    if not is_s3(str(source)):
        return find_generator_on_disk(expanded(source))
    store = Store.at(source)
    try:
        return _find_in_s3(store)
    except StoreError as error:
        raise UserError(str(error)) from None


def best_of(source: str) -> str:
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


def _find_in_s3(store: Store) -> Path:
    """Raises StoreError, UserError."""
    if store.size(MANIFEST) is not None:
        run, name = Store(store.url.rpartition("/")[0]), store.name
        try:
            return fetch_generator(run, name)
        except (DamagedCheckpointError, DamagedFileError) as error:
            raise UserError(f"{store} is damaged ({error}); name another checkpoint") from None
    names, damage = checkpoints(store), list[str]()
    for name in names:
        try:
            return fetch_generator(store, name)
        except (DamagedCheckpointError, DamagedFileError) as error:
            damage.append(str(error))
    if names:
        raise UserError(f"no whole checkpoint in {store}: {damage[0]}")
    if store.size("run.json") is not None:
        raise UserError(
            f"no whole checkpoint in {store}; a run needs one checkpoint before it can generate"
        )
    return resolve_source(store.url)


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
