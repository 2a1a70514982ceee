"""A network with a LoRA merged into its weights, as a folder on this machine's disk.

    fused(base, "style.safetensors", 0.8)     the folder: model.json, weights, links to other parts

The LoRA may be of the network and of the text encoders beside it. It is merged once; what is
trained, compared and judged afterwards are the merged weights.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.places import expanded
from sid_ray.weights.address import FILE_SUFFIXES, parse_source, source_label
from sid_ray.weights.derived import derived, link_parts, seen, write_component
from sid_ray.weights.description import PEFT_METADATA, ModelDescription
from sid_ray.weights.unpacked import RECORD

if TYPE_CHECKING:
    from torch import Tensor

    from sid_ray.denoisers.family import Family
    from sid_ray.denoisers.lora import Change
    from sid_ray.weights.formats import LoadedWeights

NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors",
         "pytorch_lora_weights.bin", "adapter_model.bin")  # fmt: skip
SETTINGS = "adapter_config.json"  # PEFT's, beside its weights
TEXT = "text_encoder"


@dataclass(frozen=True)
class Lora:
    """A LoRA as a person names it, and its file here."""

    source: str
    scale: float
    file: Path

    @property
    def sha256(self) -> str:
        return file_sha256(self.file)

    def note(self) -> dict[str, Any]:
        """What model.json says of it."""
        return {"source": self.source, "scale": self.scale, "sha256": self.sha256}


def find_lora(source: str, scale: float = 1.0) -> Lora:
    """Fetches it where it is not here. Raises UserError."""
    parsed, label = parse_source(source), source_label(source)
    if parsed.kind == "path":
        place = expanded(parsed.location).absolute()
    elif parsed.kind == "builtin":
        raise UserError(f"{label} is no adapter: builtin: names whole networks")
    elif parsed.location.endswith(FILE_SUFFIXES):
        from sid_ray.weights.sources import resolve_file

        place = resolve_file(source)
    else:
        from sid_ray.weights.sources import resolve_file

        place = resolve_file(f"{source.rstrip('/')}/{NAMES[0]}")
    if place.is_dir():
        held = [place / name for name in NAMES if (place / name).is_file()]
        others = sorted(place.glob("*.safetensors"))
        if not held and len(others) == 1:
            held = others
        if not held:
            raise UserError(f"no LoRA in {label}: {' or '.join(NAMES[:2])} is needed")
        place = held[0]
    if not place.is_file():
        raise UserError(f"no LoRA at {label}")
    return Lora(label, scale, place)


def fused(base: Path, lora: Lora, label: str) -> Path:
    """The folder of a network, whose ``label`` is for messages, with a LoRA merged into it.

    Raises UserError in one line where it does not fit.
    """
    if not math.isfinite(lora.scale):
        raise UserError(f"the scale of a LoRA is {lora.scale}; a finite number is expected")

    def make(folder: Path) -> None:
        try:
            write_fused(base, lora, label, folder)
        except UserError as error:
            raise UserError(f"LoRA {lora.source} on {label}: {error}") from None

    return derived("fused", base, [*seen(lora.file), lora.sha256, lora.scale], make)


@dataclass(frozen=True)
class Merged:
    """A network with a LoRA merged into it, by the names of our denoiser, and what else of its
    pipeline has changed: the tensors of text encoders by their part.

    ``base`` is the base's own description, ``root`` the folder with the other parts.
    """

    base: ModelDescription
    tensors: Mapping[str, Tensor]
    texts: Mapping[str, Mapping[str, Tensor]]
    root: Path


def with_lora(base: Path, lora: Lora, label: str, held: str = "float32") -> Merged:
    """The sums, over the base's numbers as they are where it is ``held`` as adapter.base says.

    Raises UserError.
    """
    from sid_ray.denoisers.lora import with_changes
    from sid_ray.weights.formats import read_weights
    from sid_ray.weights.networks import fitted

    weights = read_weights(base, label=label)
    _, description, tensors = fitted(weights)
    if description.adapter is not None:
        raise UserError("the base holds an adapter alone: give the network that it is of")
    if held != "float32":
        if held not in family_of(description.family).bases:
            raise UserError(f"it records a base held in {held!a:.40}, which no such network is")
        tensors = held_tensors(weights, held)
    family = family_of(description.family)
    by_part = by_parts(changes_of(lora, family, description.network, tensors), family)
    root = base.parent if base.name == family.folder and (base / "config.json").is_file() else base
    texts = {
        part: merged_text(root / part, own, lora.scale, part)
        for part, own in by_part.items()
        if part != family.folder
    }
    names = network_names(family, tensors)
    changed = with_changes(tensors, by_part.get(family.folder, {}), names, lora.scale)
    return Merged(description, changed, texts, root)


def held_tensors(weights: LoadedWeights, precision: str) -> dict[str, Tensor]:
    """A network's tensors, float32, with the numbers that they have in a base that is held so.

    Raises UserError.
    """
    import torch

    from sid_ray.denoisers.adapters import hold_as_base
    from sid_ray.denoisers.quantised import QuantisedLinear
    from sid_ray.weights.networks import build_network

    network, _ = build_network(weights)
    hold_as_base(network, precision, torch.device("cpu"))
    found = dict(network.state_dict())
    for name, layer in network.named_modules():
        if isinstance(layer, QuantisedLinear):  # whose stored weight is codes
            found[f"{name}.weight"] = layer.whole(torch.float32)
    return {name: value.to(torch.float32) for name, value in found.items()}


def write_fused(base: Path, lora: Lora, label: str, folder: Path) -> None:
    """Writes the merged network, and merged text encoders. Raises UserError, OSError."""
    from sid_ray.weights.description import save_model

    found = with_lora(base, lora, label)
    root = found.root
    for part, tensors in found.texts.items():
        write_text(root / part, tensors, folder / part)
    notes = {**found.base.notes, "lora": lora.note()}
    save_model(folder, found.tensors, replace(found.base, notes=notes))
    if root.is_dir():
        network = family_of(found.base.family).folder
        link_parts(folder, {e.name: e for e in root.iterdir() if e.is_dir() and e.name != network})
    if (root / RECORD).is_file():  # it came out of one file
        shutil.copyfile(root / RECORD, folder / RECORD)


def network_names(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By a module's path in the network: its weight's name here."""
    ending = ".weight"
    return {
        name.removesuffix(ending).removeprefix(family.bare_prefix): name
        for name in tensors
        if name.endswith(ending)
    }


def changes_of(
    lora: Lora, family: Family, network: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Change]:
    """The LoRA's changes by the part of the pipeline and the module. Raises UserError."""
    from sid_ray.denoisers.lora import changes, is_lora, module_path, plain_kohya_names

    found = read_lora(lora.file)
    if not is_lora(found):
        raise UserError("the file holds no LoRA: its names are not those of one")
    found, alphas = family.lora_names(found, network)
    plain = {}
    for path in network_names(family, tensors):
        for front in ("lora_unet_", "lora_transformer_"):
            plain[front + path.replace(".", "_")] = f"{family.folder}.{path}"
    own = changes(plain_kohya_names(plain, found), alphas)
    settings = peft_settings(lora.file)
    return {
        path: replace(change, alpha=told_alpha(settings, module_path(path), change))
        if change.alpha is None
        else change
        for path, change in own.items()
    }


def read_lora(file: Path) -> dict[str, Tensor]:
    from sid_ray.tensor_files.tensors import read_bin, read_safetensors

    return (read_safetensors if file.suffix == ".safetensors" else read_bin)(file)


def by_parts(changes: Mapping[str, Change], family: Family) -> dict[str, dict[str, Change]]:
    """Changes by module, by part of the pipeline; without a part's name, the network's."""
    parts: dict[str, dict[str, Change]] = {}
    known = {family.folder, *(p for p in family.text_parts if p.startswith(TEXT))} - {""}
    for path, change in changes.items():
        part, _, module = path.partition(".")
        if part not in known:
            part, module = family.folder, path
        parts.setdefault(part, {})[module] = change
    return parts


def merged_text(
    own: Path, changes: Mapping[str, Change], scale: float, part: str
) -> dict[str, Tensor]:
    """The tensors of a text encoder with a LoRA merged into it. Raises UserError."""
    from sid_ray.denoisers.lora import with_changes
    from sid_ray.tensor_files.tensors import read_component

    if not (own / "config.json").is_file():
        raise UserError(
            f"it changes {part}, too, and the teacher has none beside it: give a teacher with its "
            "text encoder, or a LoRA of the network alone"
        )
    tensors, _ = read_component(own)
    front = "text_model."
    names: dict[str, str] = {}
    for name in tensors:
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            names |= {module: name, front + module: name, module.removeprefix(front): name}
    return with_changes(tensors, changes, names, scale)


def write_text(own: Path, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes a text encoder like ``own`` with other weights. Raises UserError, OSError."""
    from sid_ray.tensor_files.tensors import json_object

    write_component(folder, json_object(own / "config.json"), tensors)
    for file in own.iterdir():
        is_setting = file.suffix in (".json", ".txt") and ".index." not in file.name
        if is_setting and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


# What PEFT records beside the tensors -------------------------------------------------------------


def peft_settings(file: Path) -> dict[str, Any]:
    """adapter_config.json beside a file, or what diffusers wrote of it inside; else empty.

    Names are as diffusers writes them, with a part's name in front where it has one.
    """
    from sid_ray.tensor_files.tensors import json_object, readable

    if (file.parent / SETTINGS).is_file():
        return json_object(file.parent / SETTINGS)
    if file.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with readable(file), safe_open(file, framework="pt") as opened:
        text = (opened.metadata() or {}).get(PEFT_METADATA, "{}")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"{PEFT_METADATA} is no table")
        return found


def told_alpha(settings: Mapping[str, Any], path: str, change: Change) -> float | None:
    """What the settings say of a module's alpha, in the sense of alpha / r; None for nothing."""
    part, _, module = path.partition(".")
    own = {name.removeprefix(f"{part}."): value for name, value in settings.items()}
    for name in ("use_dora", "lora_bias", "fan_in_fan_out"):
        if own.get(name):
            raise UserError(f"it was made with {name}: only plain LoRA is merged")
    alpha = own.get("lora_alpha")
    for pattern, value in dict(own.get("alpha_pattern") or {}).items():
        if re.search(rf"(^|\.){re.escape(str(pattern))}$", module or path):
            alpha = value
    if alpha is None:
        return None
    if not isinstance(alpha, int | float):
        raise UserError(f"lora_alpha is {alpha!r:.40}; a number is expected")
    rank = change.down.shape[0]
    return float(alpha) * (math.sqrt(rank) if own.get("use_rslora") else 1.0)
