"""From a remote source to a local file or folder: which files, from which server.

A source that names a file is that file. One that names an S3 prefix, a Hugging Face repository or a
folder in it is every file there that a network needs: model.json and its weights, or a diffusers
folder's configurations and safetensors.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from sid_ray.denoisers.registry import pipeline_parts
from sid_ray.errors import UserError
from sid_ray.storage.errors import MissingFileError, UnreachableStoreError
from sid_ray.storage.store import Store
from sid_ray.weights import description
from sid_ray.weights.address import WeightSource
from sid_ray.weights.cache import entry, failures_named, fetch_file, read_cache_record
from sid_ray.weights.hub import fetch_from_hub
from sid_ray.weights.remotes import Remote, look_at_web, look_in_store

OWN_FILES = ("model.json", "model.safetensors")
SETTINGS = (".json", ".txt", ".model")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema)[.-]")  # in the name of a file or of a shard


def fetch(source: WeightSource, label: str, parts: Sequence[str] = ()) -> Path:
    """The local path of a remote source, up to date where the server can be asked.

    Of a diffusers folder these ``parts`` are fetched, all that a network needs where none are
    named. Raises UserError in one line: not found, no access, no space left, unreachable, another
    file than its checksum says.
    """
    if source.kind == "hf":
        return fetch_from_hub(source, label, lambda found: chosen_files(found, label, parts))
    if source.kind not in ("http", "https"):
        return fetch_from_store(source, label, parts)
    host = urlsplit(source.location).hostname or ""
    if source.kind == "http" and host not in LOOPBACK and source.sha256 is None:
        raise UserError(f"{label}: a plain connection needs a checksum; add #sha256=... or https")
    return fetch_file(entry(source), lambda: look_at_web(source.location), source, label)


def fetch_from_store(source: WeightSource, label: str, parts: Sequence[str]) -> Path:
    """A file of a store, or every file of a network in a folder (S3: under a prefix).

    Raises UserError. Where the server cannot be asked, an earlier copy is used.
    """
    store = Store.at(source.location)
    place = entry(WeightSource(source.kind, store.url))
    found: list[str] = []
    if source.sha256 is None:
        with failures_named(label):
            try:
                found = list(store.files())
            except UnreachableStoreError as error:
                if read_cache_record(place) is None and not has_network(place, parts):
                    raise
                print(f"{error.strerror or error}; the copy is used", file=sys.stderr)
                return place
    if not found:

        def look() -> Remote:
            try:
                return look_in_store(store)
            except MissingFileError as error:
                raise UserError(f"no network at {label}: {error.strerror or error}") from None

        return fetch_file(place, look, source, label)
    for name in chosen_files(found, label, parts):
        at = store / name
        file = WeightSource(source.kind, at.url)
        fetch_file(place / name, partial(look_in_store, at), file, f"{label.rstrip('/')}/{name}")
    return place


def chosen_files(found: list[str], label: str, parts: Sequence[str]) -> list[str]:
    """``network_files``. Raises UserError where there are none."""
    names = network_files(found, parts)
    if not names:
        needed = " or ".join(named_by_parts(parts))
        raise UserError(f"no network at {label}: neither a file nor a folder with {needed}")
    return names


def named_by_parts(parts: Sequence[str]) -> tuple[str, ...]:
    """The files of which one makes a folder a network, or these parts of a pipeline."""
    if not parts:
        return description.named_by()
    name = "tokenizer_config.json" if parts[0].startswith("tokenizer") else "config.json"
    return (name, f"{parts[0]}/{name}")


def network_files(found: list[str], parts: Sequence[str] = ()) -> list[str]:
    """Those of a folder's files that make a network, or these parts of one; none if there is none.

    Of weights that are there twice (half precision, pickled, other frameworks), only one is taken.
    """
    paths = [PurePosixPath(name) for name in found if name and "\\" not in name]
    paths = [path for path in paths if not path.is_absolute() and ".." not in path.parts]
    names = {str(path) for path in paths}
    named = named_by_parts(parts)
    if names.issuperset(OWN_FILES) and "model.json" in named:
        return [name for name in OWN_FILES if name in names]
    if not names & set(named):
        return []
    depth = 2 if any("/" in name for name in names & set(named)) else 1
    wanted = parts or pipeline_parts()
    paths = [
        path
        for path in paths
        if len(path.parts) <= depth and (len(path.parts) == 1 or path.parts[0] in wanted)
    ]
    return sorted(str(path) for path in paths if _is_needed(path, names, depth))


def _is_needed(path: PurePosixPath, names: set[str], depth: int) -> bool:
    if path.suffix in SETTINGS:
        return True
    if len(path.parts) < depth or path.suffix not in (".safetensors", ".bin"):
        return False  # a whole pipeline in one file, beside its parts
    beside = [name for name in names if PurePosixPath(name).parent == path.parent]
    whole = [n for n in beside if not VARIANT.search(n) and n.endswith((".safetensors", ".bin"))]
    safe = [n for n in whole or beside if n.endswith(".safetensors")]
    return str(path) in (safe or [n for n in whole or beside if n.endswith(".bin")])


def has_network(folder: Path, parts: Sequence[str] = ()) -> bool:
    """Whether every file of a fetched folder is whole, and the one that names it is there."""
    whole = not any(folder.rglob("*.part"))
    return whole and any(
        read_cache_record(folder / name) is not None for name in named_by_parts(parts)
    )
