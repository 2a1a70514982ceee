"""A network in a folder: ``model.safetensors`` and ``model.json`` that names the network.

The format of teachers, EMA generators and anything else that is a network and nothing more. Nothing
in it is ever executed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_ray.denoisers.adapter_names import IN_FILE, names_in_file, names_in_tree
from sid_ray.denoisers.registry import family_of, network_folders
from sid_ray.errors import UserError

if TYPE_CHECKING:  # what reads no weights must not load torch
    from torch import Tensor, nn

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
METADATA = "sid_ray"  # the description inside a safetensors file
PEFT_METADATA = "lora_adapter_metadata"  # where diffusers and PEFT look for a LoRA's settings there


@dataclass(frozen=True)
class ModelDescription:
    """What model.json holds: the family, its arguments, how one step is made, free notes.

    ``adapter`` is what denoisers.adapters.Adapter says, where the file holds an adapter alone: the
    rest is in the base, which the notes name.
    """

    family: str
    network: Mapping[str, Any]
    one_step: Mapping[str, Any] | None = None  # {"sigma": 2.5}: how a generator is evaluated
    notes: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        values = {"family": self.family, "network": dict(self.network)}
        if self.one_step is not None:
            values["one_step"] = dict(self.one_step)
        if self.adapter is not None:
            values["adapter"] = dict(self.adapter)
        return json.dumps(values | {"notes": dict(self.notes)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, label: str) -> ModelDescription:
        """The inverse of to_json. Raises UserError, which names ``label``, for anything else."""
        try:
            found = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{label} does not describe a network: {error}") from None
        tables = (found.network, found.notes, found.one_step or {}, found.adapter or {})
        if not isinstance(found.family, str) or not all(isinstance(t, dict) for t in tables):
            raise UserError(f"{label} does not describe a network: family or network is missing")
        return found


@dataclass(frozen=True)
class Components:
    """Folders of a network's text encoder and VAE; None where it needs none, or has none."""

    text: Path | None = None
    vae: Path | None = None

    @property
    def are_here(self) -> bool:
        """Whether this machine has them."""
        return all(path is None or path.exists() for path in (self.text, self.vae))


NO_COMPONENTS = Components()


def named_by() -> tuple[str, ...]:
    """The files of which one makes a folder a network's."""
    return (DESCRIPTION, "config.json", *(f"{name}/config.json" for name in network_folders()))


def holds_network(folder: Path) -> bool:
    """Whether a folder is a network's."""
    return any((folder / name).is_file() for name in named_by())


def no_network(folder: Path, label: str) -> str:
    """Why a folder is no network's: what it holds instead, and what would be one."""
    needed = f"a folder with {DESCRIPTION}, a diffusers folder with " + (
        " or ".join(f"{name}/config.json" for name in network_folders()) + ", or a weights file"
    )
    found = what_lies_in(folder)
    return f"no network at {label}{f', which holds {found}' if found else ''}: {needed} is needed"


def what_lies_in(folder: Path) -> str:
    """Of a folder without a network: its quantised files, its parts with their classes, or its
    files; empty for one that is not there.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    gguf = [entry.name for entry in entries if entry.suffix == ".gguf"]
    if gguf:
        return f"{gguf[0]}, quantised weights"
    parts = [part for part in map(part_in_words, entries) if part]
    files = [entry.name for entry in entries if entry.is_file()]
    return ", ".join((parts or files)[:6]) or ("nothing" if folder.is_dir() else "")


def part_in_words(folder: Path) -> str:
    """'transformer (WanTransformer3DModel, which makes video ...)'; empty for no folder."""
    if not folder.is_dir() or folder.name.startswith("."):
        return ""
    try:
        found = json.loads((folder / "config.json").read_text())
        class_name = str(found.get("_class_name") or (found.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return folder.name
    if not class_name.isidentifier():
        return folder.name
    return f"{folder.name} ({class_name})"


def save_model(folder: Path, weights: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Writes the folder; weights are stored as they are, contiguous."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, weights, description)
    (folder / DESCRIPTION).write_text(description.to_json())


def save_weights(path: Path, weights: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Writes a safetensors file that describes itself; weights are stored as they are."""
    named = names_in_file(weights.items()) if description.adapter else weights.items()
    tensors = {name: value.detach().cpu().contiguous() for name, value in named}
    write_safetensors(path, tensors, file_metadata(description, tensors))


def file_metadata(description: ModelDescription, names: Iterable[str]) -> dict[str, str]:
    """What a safetensors file of a network says of itself; ``names`` are those of its tensors.

    Of an adapter also what diffusers reads: without it, alpha would be taken for the rank.
    """
    found = {METADATA: description.to_json()}
    if description.adapter is not None:
        part = family_of(description.family).folder
        front = f"{part}." if part else ""
        down = IN_FILE[0]
        settings = {
            "r": description.adapter["rank"],
            "lora_alpha": description.adapter["alpha"],
            "target_modules": sorted(
                name.removeprefix(front).removesuffix(down) for name in names if name.endswith(down)
            ),
        }
        found[PEFT_METADATA] = json.dumps({front + name: of for name, of in settings.items()})
    return found


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file with the permissions of any other new file. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, dict(metadata) if metadata else None)
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # a full disk is no other error
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from None
        raise
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # safetensors 0.8 leaves it to its owner alone


def read_description(folder: Path) -> ModelDescription:
    """Reads model.json. Raises UserError when it is missing or is not one."""
    path = folder / DESCRIPTION
    try:
        return ModelDescription.from_json(path.read_text(), str(path))
    except FileNotFoundError:
        raise UserError(f"no network in {folder}: {DESCRIPTION} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} does not describe a network: {error}") from error


def safetensors_description(path: Path) -> ModelDescription | None:
    """What a safetensors file says of its network: inside it, or in model.json beside it.

    None where nothing does. Raises UserError when the description is not one.
    """
    from safetensors import safe_open

    from sid_ray.tensor_files.tensors import readable

    with readable(path), safe_open(path, framework="pt") as file:
        inside = (file.metadata() or {}).get(METADATA)
    if inside is not None:
        return ModelDescription.from_json(inside, str(path))
    beside = path.parent / DESCRIPTION
    return read_description(path.parent) if beside.is_file() else None


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a safetensors file by name: nothing missing, nothing left over, shapes equal."""
    import torch

    from sid_ray.tensor_files.tensors import check_fit, read_safetensors

    weights = names_in_tree(read_safetensors(path))
    check_fit(model, weights, str(path))
    model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()})
