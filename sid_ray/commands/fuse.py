"""``sid-ray weights fuse``: an adapter, or any LoRA, in the weights of a network.

DST/model.json, model.safetensors                       of a base that is a network alone
DST/model.json, unet/, vae/, text_encoder/, ...         of a diffusers folder: all of its parts
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sid_ray.commands.fuse_options import FuseOptions
from sid_ray.denoisers.lora import is_lora as is_lora_names
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.evaluation.subject import find_network
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path, scheme_of
from sid_ray.tensor_files.tensors import json_object, readable
from sid_ray.weights.address import FILE_SUFFIXES, source_label
from sid_ray.weights.base import BASE
from sid_ray.weights.command import check_destination, put_folder, put_network
from sid_ray.weights.derived import unshared, write_component
from sid_ray.weights.description import (
    DESCRIPTION,
    WEIGHTS,
    ModelDescription,
    safetensors_description,
)
from sid_ray.weights.fused import NAMES, Lora, Merged, find_lora, with_lora, write_text
from sid_ray.weights.networks import describe
from sid_ray.weights.over_base import check_fits, other_base
from sid_ray.weights.sources import resolve_source
from sid_ray.weights.teacher import predicts

NO_ADAPTER = "{} is a whole network, no adapter: BASE comes first, ADAPTER after it"
SETTINGS = (".json", ".txt", ".model")


def fuse(options: FuseOptions) -> int:
    """``sid-ray weights fuse``. Returns the exit code. Raises UserError."""
    if not math.isfinite(options.scale):
        raise UserError(f"--scale {options.scale}: a finite number is expected")
    check_destination(options.destination, options.force)
    lora = find_adapter(options.adapter, options.scale)
    own = own_description(lora.file)
    base = resolve_source(options.base, *([predicts(own)] if own else []))
    label = source_label(options.base)
    held = "float32"
    if own and own.adapter:
        check_fits(own, describe(base), lora.source, base, "as BASE")
        held = str(own.adapter.get("base", held))
    try:
        found = with_lora(base, lora, label, held)
        description = fused_description(found, lora, own, options.base)
    except UserError as error:
        raise UserError(f"{lora.source} on {label}: {error}") from None
    if own and (other := other_base(own, base)):
        print(f"{label} has other weights than those that it was distilled over ({other})")
    if held != "float32":
        print(f"{label} is rounded as in {held}, over which the adapter was trained")
    dtype: torch.dtype = getattr(torch, options.dtype)
    found = replace(
        found,
        tensors=in_dtype(found.tensors, dtype),
        texts={part: in_dtype(tensors, dtype) for part, tensors in found.texts.items()},
    )
    print(f"{options.destination}: {put(options, found, description)}")
    return 0


def find_adapter(source: str, scale: float) -> Lora:
    """The file of an adapter: of a run or a checkpoint its averaged generator's.

    Raises UserError.
    """
    folder = expanded(source) if is_path(source) else None
    if folder is None:
        is_lora = not scheme_of(source).is_store or source.endswith(FILE_SUFFIXES)
    else:
        is_lora = folder.is_file() or any((folder / name).is_file() for name in NAMES)
        is_lora |= len(list(folder.glob("*.safetensors"))) == 1  # a LoRA's folder, or RUN/model
    label = source_label(source)
    if is_lora:
        lora = find_lora(source, scale)
        if holds_whole(lora.file):
            raise UserError(NO_ADAPTER.format(label))
        return lora
    network = find_network(source)
    file = network if network.is_file() else network / WEIGHTS
    if own_description(file) is None:
        raise UserError(NO_ADAPTER.format(label))
    return Lora(label, scale, file)


def holds_whole(file: Path) -> bool:
    """Whether the names in a safetensors file are those of no LoRA. Raises UserError."""
    if file.suffix != ".safetensors":
        return False  # what else it is is seen when it is read
    with readable(file), safe_open(file, framework="pt") as opened:
        return not is_lora_names(opened.keys())


def own_description(file: Path) -> ModelDescription | None:
    """What an adapter of ours says of its generator; None for any other LoRA. Raises UserError."""
    if file.suffix != ".safetensors" or not file.is_file():  # a diffusers folder has no such file
        return None
    found = safetensors_description(file)
    return found if found is not None and found.adapter is not None else None


def fused_description(
    found: Merged, lora: Lora, own: ModelDescription | None, source: str
) -> ModelDescription:
    """Of an adapter of ours its generator's, at its size."""
    notes = {"source": source_label(source), "fused": lora.note()}
    if own is None:
        return replace(found.base, notes={**found.base.notes, **notes})
    left_out = ("lora", "teacher_commit", BASE)
    kept = {name: value for name, value in own.notes.items() if name not in left_out}
    teacher = str(expanded(source).absolute()) if is_path(source) else source
    return replace(own, notes={**kept, "teacher": teacher, **notes}, adapter=None)


def in_dtype(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Whole numbers stay."""
    return unshared(
        {n: value.to(dtype) if value.is_floating_point() else value for n, value in tensors.items()}
    )


def put(options: FuseOptions, found: Merged, description: ModelDescription) -> str:
    """Writes DST. Returns what was written. Raises UserError."""
    family, path = family_of(description.family), options.destination
    is_whole = bool(family.folder) and (found.root / family.folder / "config.json").is_file()
    if is_whole and not path.suffix:
        put_folder(path, options.force, lambda new: write_whole(new, found, description))
        return f"a diffusers folder of family {family.name}"
    if found.texts:
        changed = ", ".join(found.texts)
        raise UserError(f"{options.adapter} changes {changed}, too: DST must be a folder")
    put_network(path, found.tensors, description, options.force)
    return f"{len(found.tensors)} tensors of a network of family {family.name}"


def write_whole(folder: Path, found: Merged, description: ModelDescription) -> None:
    """All parts of a base's folder, the network and changed text encoders merged; model.json says
    what the network is here. Raises UserError, OSError.
    """
    family, root = family_of(description.family), found.root
    folder.mkdir()
    for part, tensors in found.texts.items():
        write_text(root / part, tensors, folder / part)
    own = json_object(root / family.folder / "config.json")
    size: dict[str, Any] = {n: of for n, of in description.network.items() if n in own}
    bare = {n.removeprefix(family.bare_prefix): value for n, value in found.tensors.items()}
    write_component(folder / family.folder, own | size, bare)
    for entry in root.iterdir():
        if entry.name == family.folder or entry.name in found.texts or entry.name.startswith("."):
            continue
        if entry.is_dir():
            shutil.copytree(entry, folder / entry.name)
        elif entry.suffix in SETTINGS and entry.name != DESCRIPTION:
            shutil.copyfile(entry, folder / entry.name)
    (folder / DESCRIPTION).write_text(description.to_json())
