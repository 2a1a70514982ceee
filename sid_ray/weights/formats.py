"""Reads the weights of a local file or folder, whatever wrote it. Nothing in it is executed.

network folder     model.safetensors and model.json (sid_ray's own), or model.json beside the parts
                   of a diffusers folder
safetensors file   with its description inside, beside it, or without one
diffusers folder   its network's folder (unet) with config.json and weights, or that folder itself
snapshot pickle    NVIDIA EDM and EDM2, SiD, SiDA: persistence records under "ema"
module pickle      SiD-LSG: a pickled UNet2DConditionModel under "ema"
training state     .pt of EDM, SiD, SiDA, SiD-LSG: modules or state dicts under several names
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sid_ray.denoisers.foreign import names_in_words
from sid_ray.denoisers.registry import (
    family_of,
    from_official,
    named_arguments,
    network_folders,
    single_file_names,
)
from sid_ray.errors import UserError
from sid_ray.tensor_files.archives import PickledFile, is_pickled, read_pickled
from sid_ray.tensor_files.inert import Inert, Persistent, RefusedFileError, as_mapping
from sid_ray.tensor_files.modules import (
    is_module,
    is_state_dict,
    module_tensors,
    plain_value,
    state_dict_tensors,
)
from sid_ray.tensor_files.tensors import (
    json_object,
    mistaken_for,
    read_component,
    read_safetensors,
    take_all,
    without_numbers,
)
from sid_ray.weights.address import commit_of
from sid_ray.weights.description import (
    DESCRIPTION,
    WEIGHTS,
    ModelDescription,
    no_network,
    read_description,
    safetensors_description,
)

# What a caller may ask for, and the names it has in the files, best first.
PARTS = {
    "ema": ("ema", "G_ema", "G_ema_state"),
    "G": ("G", "G_state"),
    "fake_score": ("fake_score", "fake_score_state"),
    "net": ("net",),
}


NO_ARGUMENTS: dict[str, Any] = {}


@dataclass(frozen=True)
class LoadedWeights:
    """The weights of one network as they are in a file, and what the file says of the network.

    ``class_name`` and ``arguments`` are the official class and its recorded constructor arguments;
    both empty where the file records none (a bare state dict). ``description`` is there when the
    file is one of sid_ray's own. Tensors keep the dtype they were stored in.
    """

    label: str
    layout: str
    class_name: str
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    buffers: frozenset[str] = frozenset()
    description: ModelDescription | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def described(self, like: ModelDescription | None = None) -> ModelDescription:
        """The network's family and arguments.

        ``like`` lends them where this file records none, but for those that its tensors decide: a
        generator of SiDA lacks its teacher's log-variance head. Raises UserError where nobody
        does, or where the class is unknown.
        """
        if self.description is not None:
            return replace(self.description, notes=dict(self.notes))
        if self.class_name:
            family, network = from_official(self.class_name, self.arguments)
            return ModelDescription(family, network, notes=dict(self.notes))
        if like is None:
            raise UserError(f"{self.label} {nameless(self.tensors, self.label)}")
        borrowed = family_of(like.family).adapted(like.network, self.tensors)
        return replace(like, network=borrowed, one_step=None, notes=dict(self.notes))


def nameless(tensors: Mapping[str, Tensor], label: str) -> str:
    """What tensors are that nothing says the network of, and what to do with them."""
    from sid_ray.denoisers.lora import is_lora

    if is_lora(tensors):
        return (
            "holds a LoRA, changes to another network: give that as --teacher.source, and this as "
            "--teacher.lora"
        )
    if any(name.startswith(single_file_names()) for name in tensors):
        return (
            "is a pipeline in one file: it is opened by a name that ends in .safetensors or .ckpt"
        )
    return names_in_words(tensors) or (
        "holds tensors but does not say of which network: sid-ray weights convert "
        f"{label} NEW.safetensors --like TEACHER writes a file that does, where TEACHER is a file "
        "with the same network, its teacher's for example"
    )


def read_weights(
    path: Path, part: str | None = None, label: str = "", numbers: bool = True
) -> LoadedWeights:
    """The weights of a file or folder.

    ``part`` chooses among several networks of one file: ema, G, fake_score or net; by default the
    averaged one. ``label`` names the source in messages. Without ``numbers``, tensors stay in their
    files: only shapes and dtypes are here (on torch's meta device). Raises UserError in one line.
    """
    label = label or str(path)
    if part is not None and part not in PARTS:
        raise UserError(f"no part {part!r}; known: {', '.join(PARTS)}")
    try:
        if path.is_dir():
            found = _read_folder(path, label, numbers)
        else:
            found = _read_file(path, part, label, numbers)
    except RefusedFileError as error:
        raise RefusedFileError(
            f"{label} was not loaded: {error}. Fetch it again, or do not trust where it came from"
        ) from None
    commit = commit_of(path)
    return replace(found, notes={**found.notes, "commit": commit}) if commit else found


def _read_folder(path: Path, label: str, numbers: bool) -> LoadedWeights:
    if (path / DESCRIPTION).is_file():
        described = read_description(path)
        part = family_of(described.family).folder
        if part and not (path / WEIGHTS).is_file() and (path / part).is_dir():
            tensors, _ = read_component(path / part, ("diffusion_pytorch_model",), numbers)
        else:
            tensors = read_safetensors(path / WEIGHTS, numbers)
        return LoadedWeights(
            label, "network folder", "", {}, tensors, description=described, notes=described.notes
        )
    for folder in (*(path / name for name in network_folders()), path):
        if (folder / "config.json").is_file():
            return _read_diffusers(folder, label, numbers)
    raise UserError(no_network(path, label))


def _read_diffusers(folder: Path, label: str, numbers: bool) -> LoadedWeights:
    """A diffusers model: its config, and its weights in one or several files."""
    config = json_object(folder / "config.json")
    class_name = str(config.get("_class_name") or (config.get("architectures") or [""])[0])
    if not class_name:
        raise UserError(f"{folder / 'config.json'} names no class of network: none is known")
    if "quantization_config" in config:
        raise UserError(f"{folder / 'config.json'}: quantised weights; take the float ones")
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        family = family_of(from_official(class_name, arguments)[0])
    except UserError as error:  # another class
        raise UserError(f"{label}: {error}") from None
    tensors, variant = read_component(folder, ("diffusion_pytorch_model",), numbers)
    if folder.name == family.folder:
        arguments |= family.beside(folder.parent)
    notes = {"variant": variant} if variant else {}
    return LoadedWeights(label, "diffusers folder", class_name, arguments, tensors, notes=notes)


def _read_file(path: Path, part: str | None, label: str, numbers: bool = True) -> LoadedWeights:
    if path.exists() and not path.is_file():
        raise UserError(f"{label} is neither a file nor a folder")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise UserError(f"{label} cannot be read: {error.strerror or error}") from None
    if what := mistaken_for(start):
        raise UserError(f"{label} {what}")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        tensors = read_safetensors(path, numbers)
        described = safetensors_description(path)
        if described is None and (path.parent / "config.json").is_file():
            raise UserError(f"{label} is a part of a folder with config.json: give the folder")
        notes = described.notes if described else {}
        return LoadedWeights(
            label, "safetensors file", "", {}, tensors, description=described, notes=notes
        )
    if not is_pickled(start):
        raise UserError(
            f"{label} is no weights file: it begins with {start[:8]!r}; a .pkl, .pt or "
            ".safetensors file, or a folder, is expected"
        )
    return from_pickled(read_pickled(path), part, label, numbers)


def from_pickled(
    file: PickledFile, part: str | None, label: str, numbers: bool = True
) -> LoadedWeights:
    """The chosen network of a pickled file. Raises UserError where it holds none."""
    where, record = choose(file.root, part, label)
    if is_state_dict(record):
        found, (class_name, arguments) = state_dict_tensors(record), ("", NO_ARGUMENTS)
    else:
        found, (class_name, arguments) = module_tensors(record), recorded_network(record)
    persistent = isinstance(record, Persistent)
    layout = "snapshot" if persistent else "module"
    if file.container != "pickle":
        layout = "state dict" if is_state_dict(record) else "training state"
    return LoadedWeights(
        label,
        f"{layout} in a {file.container}",
        class_name,
        arguments,
        take_all(found, file.size) if numbers else without_numbers(found),
        frozenset(found.buffers),
        notes={"part": where} if where else {},
    )


def choose(root: Any, part: str | None, label: str) -> tuple[str, Any]:
    """(name, record) of the wanted network among those of a file."""
    if is_module(root) or is_state_dict(root):
        return "", root
    table = as_mapping(root) or {}
    for name in [n for p in ([part] if part else PARTS) for n in PARTS[p]]:
        if is_module(table.get(name)) or is_state_dict(table.get(name)):
            return name, table[name]
    inner, marks = table.get("state_dict"), single_file_names()
    if part is None and isinstance(inner, dict) and any(str(n).startswith(marks) for n in inner):
        raise UserError(f"{label} {nameless(inner, label)}")
    held = ", ".join(sorted(str(name)[:40] for name in list(table)[:12])) or type(root).__name__
    wanted = f"part {part!r}" if part else "network"
    raise UserError(f"no {wanted} in {label}; it holds: {held!a}")


def recorded_network(record: Inert) -> tuple[str, dict[str, Any]]:
    """The class and constructor arguments that a module recorded of itself."""
    state = record.state
    name = record.class_name
    if isinstance(record, Persistent):
        given, named = plain_value(state.get("_init_args")), plain_value(state.get("_init_kwargs"))
        return name, named_arguments(name, given or [], named or {})
    config = plain_value(state.get("_internal_dict"))  # diffusers' own record
    config = config if isinstance(config, dict) else {}
    return name, {key: value for key, value in config.items() if not key.startswith("_")}
