"""Where networks come from.

    runs/x/model, teacher.pkl          a folder or a file
    builtin:NAME                       one that ships with the package
    https://host/path/file.pkl         fetched once into the cache (http:// with a checksum)
    s3://bucket/key.pkl                the same; a prefix with a network or diffusers folder too
    hf://owner/repo/path[@revision]    a file of a Hugging Face repository, or a network's folder in
                                       it; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold

``#sha256=HEX`` behind any of them that is a file asks for exactly that file.
"""

from __future__ import annotations

from pathlib import Path

from sid_ray.denoisers.registry import network_folders
from sid_ray.errors import UserError, nearest
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.places import expanded
from sid_ray.weights.address import (
    FILE_SUFFIXES,
    WeightSource,
    check_sha256,
    parse_source,
    source_label,
)
from sid_ray.weights.description import DESCRIPTION, holds_network, no_network
from sid_ray.weights.unpacked import EPSILON, opened_pipeline, vae_of_file

ASSETS = Path(__file__).parent.parent / "assets"


def builtin_models() -> list[str]:
    """Names of the networks that ship with sid_ray."""
    found = [path.parent for path in ASSETS.glob(f"*/{DESCRIPTION}")]
    for name in network_folders():
        found += [path.parent.parent for path in ASSETS.glob(f"*/{name}/config.json")]
    return sorted(folder.name for folder in found)


def resolve_source(source: str, prediction_type: str = EPSILON) -> Path:
    """The absolute path of a network's file or folder; remote ones are in the cache afterwards.

    A pipeline in one file is a folder (unpacked.py); ``prediction_type`` is for those that do not
    say what their network predicts. Raises UserError that says what is missing and what to do.
    """
    return opened_pipeline(resolve_file(source), source_label(source), prediction_type)


def resolve_file(source: str) -> Path:
    """The same but for a pipeline in one file, which stays one."""
    parsed = parse_source(source)
    if parsed.kind == "builtin":
        return _builtin(parsed.location)
    if parsed.kind == "path":
        return _local(parsed)
    from sid_ray.weights.fetch import fetch  # the network's libraries, only where they are needed

    return fetch(parsed, source_label(source))


def resolve_component(source: str, *parts: str) -> Path:
    """The folder with a part of a pipeline, or of that part alone: a path, or what is fetched.

    Of a remote pipeline only these ``parts`` are fetched. Raises UserError where the first of them
    is not there.
    """
    parsed, label = parse_source(source), source_label(source)
    if parsed.kind == "path":
        folder = expanded(parsed.location).absolute()
    elif parsed.kind == "builtin":
        folder = _builtin(parsed.location)
    else:
        from sid_ray.weights.fetch import fetch

        is_file = parsed.location.endswith(FILE_SUFFIXES)
        folder = fetch(parsed, label, () if is_file else parts)
    if folder.is_file():
        file, folder = folder, opened_pipeline(folder, label)
        if file == folder and parts[0] == "vae":
            folder = vae_of_file(file, label) or file
        if file == folder:
            what = FOLDER_NEEDED.format(parts[0])
            raise UserError(f"no {parts[0]} at {label}, which is a file: {what}")
    if not any((folder / name / "config.json").is_file() for name in (parts[0], "")):
        raise UserError(
            f"no {parts[0]} at {source_label(source)}: {FOLDER_NEEDED.format(parts[0])}"
        )
    return folder


FOLDER_NEEDED = "a diffusers folder with {}/config.json is needed"


def _builtin(name: str) -> Path:
    if name not in builtin_models():
        known = ", ".join(builtin_models())
        hint = nearest(name, builtin_models())
        raise UserError(f"no built-in network {name!r}; there are: {known}.{hint}")
    return ASSETS / name


def _local(source: WeightSource) -> Path:
    path = expanded(source.location).absolute()
    if path.is_file():
        if source.sha256 is not None:
            check_sha256(file_sha256(path), source.sha256, source.location)
        return path
    if source.sha256 is not None:
        raise UserError(f"no file at {source.location}; a checksum needs one")
    if not holds_network(path):
        raise UserError(no_network(path, source.location))
    return path
