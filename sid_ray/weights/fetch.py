"""From a remote source to a local file or folder: which files, from which server.

A source that names a file is that file. One that names an S3 prefix, a Hugging Face repository or a
folder in it is every file there that a network needs: model.json and its weights, or a diffusers
folder's configurations and safetensors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from sid_ray.denoisers.registry import pipeline_parts
from sid_ray.errors import UserError
from sid_ray.storage.cache import file_sha256
from sid_ray.weights import description
from sid_ray.weights.address import Source, check_sha256
from sid_ray.weights.cache import checked, entry, failures_named, fetch_file, fetch_to, read_record
from sid_ray.weights.remotes import (
    LOOPBACK,
    HttpRemote,
    HubFile,
    Remote,
    S3Remote,
    UnreachableError,
    hf_offline,
    hf_token,
    s3_failures,
    s3_filesystem,
)

OWN_FILES = ("model.json", "model.safetensors")
SETTINGS = (".json", ".txt", ".model")
VARIANTS = (".fp16.", ".bf16.", ".non_ema.", ".ema.")
MAX_LISTING = 16 << 20
COMMIT_DIGITS = 40


def fetch(source: Source, label: str, parts: Sequence[str] = ()) -> Path:
    """The local path of a remote source, up to date where the server can be asked.

    Of a diffusers folder these ``parts`` are fetched, all that a network needs where none are
    named. Raises UserError in one line: not found, no
    access, no space left, unreachable, another file than its checksum says.
    """
    if source.kind == "hf":
        return _fetch_hub(source, label, parts)
    if source.kind == "s3":
        return _fetch_s3(source, label, parts)
    host = urlsplit(source.location).hostname or ""
    if source.kind == "http" and host not in LOOPBACK and source.sha256 is None:
        raise UserError(f"{label}: a plain connection needs a checksum; add #sha256=... or https")
    return fetch_file(HttpRemote(source.location), source, label)


def _fetch_hub(source: Source, label: str, parts: Sequence[str]) -> Path:
    hub = HubFile.parse(source.location)
    known = hub.in_hub_cache(named_by(parts))
    if known is not None and (hf_offline() or len(hub.revision) == COMMIT_DIGITS):
        if source.sha256 is not None:
            check_sha256(file_sha256(known), source.sha256, label)
        return known
    # HF_ENDPOINT is part of the location: a mirror may hold other files.
    located = Source("hf", hub.url(), source.sha256)
    if hf_offline():
        path = entry(located)
        if (record := read_record(path)) is not None:
            return checked(path, record, located, label)
        if has_network(path, parts):
            return path
        raise UserError(f"{label} is not in the cache and HF_HUB_OFFLINE is set; unset it once")
    if hub.is_file():
        return fetch_file(HttpRemote(hub.url(), hf_token()), located, label)
    return fetch_folder(
        located,
        label,
        lambda: hub_listing(hub),
        lambda name: HttpRemote(hub.url(name), hf_token()),
        parts,
    )


def hub_listing(hub: HubFile) -> list[str]:
    """Files of a repository's folder, relative to it. Raises as Remote.open does."""
    opened = HttpRemote(hub.listing_url(), hf_token()).open(0, None, None)
    text = b""
    for chunk in opened.chunks:
        text += chunk
        if len(text) > MAX_LISTING:
            raise UserError("the server's list of files is larger than any repository's")
    try:
        rows = json.loads(text)
        paths = [row["path"] for row in rows if row["type"] == "file"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError("the server's list of files is not one; check HF_ENDPOINT") from None
    prefix = hub.path + "/" if hub.path else ""
    return [str(path).removeprefix(prefix) for path in paths if str(path).startswith(prefix)]


def _fetch_s3(source: Source, label: str, parts: Sequence[str]) -> Path:
    """An object, or every file of a network under a prefix."""
    prefix = source.location.removeprefix("s3://").rstrip("/")
    located = Source("s3", source.location.rstrip("/"), source.sha256)
    with failures_named(label):
        filesystem = s3_filesystem()
    return fetch_folder(
        located,
        label,
        lambda: s3_listing(filesystem, prefix),
        lambda name: S3Remote(filesystem, f"{prefix}/{name}" if name else prefix),
        parts,
    )


def s3_listing(filesystem: Any, prefix: str) -> list[str] | None:
    """Keys under a prefix, relative to it; None where there is an object of that very name."""
    with s3_failures():
        try:
            if filesystem.info(prefix).get("type") != "directory":
                return None
        except FileNotFoundError:
            return []
        return [str(path).removeprefix(prefix + "/") for path in filesystem.find(prefix)]


def fetch_folder(
    source: Source,
    label: str,
    listing: Callable[[], list[str] | None],
    remote: Callable[[str], Remote],
    parts: Sequence[str] = (),
) -> Path:
    """Fetches the files of a network that ``listing`` names; the one file itself if it is None.

    Raises UserError. Where the server cannot be asked, an earlier copy is used.
    """
    folder = entry(source)
    with failures_named(label):
        try:
            found = listing()
        except UnreachableError as error:
            if read_record(folder) is None and not has_network(folder, parts):
                raise
            print(f"{label} was not asked for news ({error}); the copy is used", file=sys.stderr)
            return folder
    if found is None:
        return fetch_file(remote(""), source, label)
    if source.sha256 is not None:
        raise UserError(f"{label} is not one file; a checksum needs one")
    names = network_files(found, parts)
    if not names:
        needed = " or ".join(named_by(parts))
        raise UserError(f"no network at {label}: neither a file nor a folder with {needed}")
    for name in names:
        file = Source(source.kind, f"{source.location}/{name}")
        fetch_to(folder / name, remote(name), file, f"{label.rstrip('/')}/{name}")
    return folder


def named_by(parts: Sequence[str]) -> tuple[str, ...]:
    """The files of which one makes a folder a network, or these parts of a pipeline."""
    if not parts:
        return description.named_by()
    return ("config.json", f"{parts[0]}/config.json")


def network_files(found: list[str], parts: Sequence[str] = ()) -> list[str]:
    """Those of a folder's files that make a network, or these parts of one; none if there is none.

    Of weights that are there twice (half precision, pickled, other frameworks), only one is taken.
    """
    paths = [PurePosixPath(name) for name in found if name and "\\" not in name]
    paths = [path for path in paths if not path.is_absolute() and ".." not in path.parts]
    names = {str(path) for path in paths}
    named = named_by(parts)
    if "model.json" in names and "model.json" in named:
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
    whole = [n for n in beside if not any(variant in n for variant in VARIANTS)]
    safe = [n for n in whole or beside if n.endswith(".safetensors")]
    return str(path) in (safe or [n for n in whole or beside if n.endswith(".bin")])


def has_network(folder: Path, parts: Sequence[str] = ()) -> bool:
    """Whether every file of a fetched folder is whole, and the one that names it is there."""
    whole = not any(folder.rglob("*.part"))
    return whole and any(read_record(folder / name) is not None for name in named_by(parts))
