"""Folders on this machine's disk that are made of others' files, once, and kept.

    CACHE/unpacked/KEY/NAME     a pipeline that lay in one file, as a folder of diffusers
    CACHE/linked/KEY/NAME       a pipeline's folder with some parts from elsewhere, as links
    CACHE/fused/KEY/NAME        a network with a LoRA in its weights, and links to the other parts
    CACHE/digests/KEY/NAME      what names a network by its numbers

KEY names what a folder is made of by path, size and time of change. It may be deleted at any time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_ray.errors import UserError
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.durable import locked

if TYPE_CHECKING:
    from torch import Tensor

MAKING = 2  # changes when what is made changes


def derived(kind: str, of: Path, values: Iterable[Any], make: Callable[[Path], None]) -> Path:
    """CACHE/kind/KEY/NAME, which ``make`` fills where it is not there. Raises UserError.

    ``of`` is what it is made of mainly, ``values`` what else decides its content.
    """
    text = json.dumps([MAKING, *seen(of), *values], default=str)
    place = cache_folder() / kind / hashlib.sha256(text.encode()).hexdigest()[:16] / of.stem
    try:
        with locked(place):
            if place.is_dir():
                return place
            part = place.with_name(place.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            try:
                make(part)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            part.rename(place)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left for {of.name} as a folder in {cache_folder()}: free some or set "
                "SID_RAY_CACHE to another disk"
            ) from None
        raise UserError(
            f"{of.name} cannot be kept as a folder in {cache_folder()}: {error.strerror or error}; "
            "set SID_RAY_CACHE to a folder that can be written"
        ) from None
    return place


def seen(path: Path) -> list[Any]:
    """A file's, or a folder's, path, sizes and times of change."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    status = [(file, file.stat()) for file in files]
    return [str(path), *((str(f.relative_to(path)), s.st_size, s.st_mtime_ns) for f, s in status)]


def linked(base: Path, replaced: Mapping[str, Path]) -> Path:
    """A folder with the parts of another, and these from elsewhere. Raises UserError."""
    parts = {entry.name: entry for entry in base.iterdir() if entry.is_dir()} | dict(replaced)

    def make(folder: Path) -> None:
        link_parts(folder, parts)

    key = [(name, *seen(path)) for name, path in sorted(parts.items())]
    return derived("linked", base, key, make)


def link_parts(folder: Path, parts: Mapping[str, Path]) -> None:
    for name, target in parts.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(target.absolute(), target_is_directory=True)


def write_component(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A part of a pipeline's folder: config.json and its weights. Raises OSError."""
    from sid_ray.weights.description import write_safetensors

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
    is_transformers = "architectures" in config
    stem = "model" if is_transformers else "diffusion_pytorch_model"
    write_safetensors(folder / f"{stem}.safetensors", unshared(tensors))


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory, as safetensors wants them."""
    addresses: set[int] = set()
    found = {}
    for name, value in tensors.items():
        value = value.contiguous()
        found[name] = value.clone() if value.data_ptr() in addresses else value
        addresses.add(value.data_ptr())
    return found
