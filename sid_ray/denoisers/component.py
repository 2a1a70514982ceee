"""One component of a diffusers folder: its config.json and its weights, checked.

Knows diffusers and transformers only through what it is given.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.quantised import quiet_bitsandbytes
from sid_ray.errors import UserError
from sid_ray.tensor_files.tensors import check_fit, json_object, read_component

Tensors = dict[str, Tensor]
Renamed = Callable[[Mapping[str, Tensor], nn.Module], Tensors]


def require_diffusers() -> None:
    """Raises UserError naming the extra when diffusers or transformers is missing."""
    missing = [m for m in ("diffusers", "transformers") if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(
            f"a diffusers folder needs {' and '.join(missing)}, not installed here: "
            "pip install 'sid_ray[diffusers]'"
        )
    quiet_bitsandbytes()


def component_of(folder: Path, part: str) -> Path:
    """A part of a pipeline's folder, or the folder where it holds nothing else."""
    alone = (folder / "config.json").is_file() and not (folder / part).is_dir()
    return folder if alone else folder / part


def tokenizer_folder(folder: Path, part: str = "text_encoder") -> Path:
    """Of the tokenizer that goes with a text encoder: beside it, or in its own folder.

    That of the part text_encoder_2 is tokenizer_2, and so on.
    """
    name = tokenizer_part(part)
    places = [folder / name, folder.parent / name, folder]
    return next((p for p in places if (p / "tokenizer_config.json").is_file()), places[0])


def tokenizer_part(part: str) -> str:
    """The part of a pipeline's folder with a text encoder's tokenizer."""
    return part.replace("text_encoder", "tokenizer")


def as_named(found: Mapping[str, Tensor], model: nn.Module) -> Tensors:
    """Renamed of a component whose files have had the same names ever since."""
    return dict(found)


def read_config(folder: Path, *class_names: str) -> dict[str, Any]:
    """A component's config.json. Raises UserError when it is missing or of none of the classes."""
    path, expected = folder / "config.json", " or ".join(class_names)
    if not path.is_file():
        raise UserError(f"no {expected} in {folder}: config.json is missing")
    config = json_object(path)
    named = class_in(config) or class_names[0]
    if named not in class_names:
        raise UserError(f"{path} describes {named}, expected {expected}")
    if "quantization_config" in config:
        raise UserError(f"{path}: quantised weights are not supported; take the float ones")
    return config


def class_in(config: Mapping[str, Any]) -> str:
    """The class that a component's config names; empty where it names none."""
    return str(config.get("_class_name") or (config.get("architectures") or [""])[0])


def laid_out(make: Callable[[], nn.Module], folder: Path) -> nn.Module:
    """A component's modules without memory. Raises UserError for a config that makes none."""
    try:
        with torch.device("meta"):
            return make()
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    except Exception as error:  # of a library's constructor, which may raise anything
        path = folder / "config.json"
        raise UserError(f"{path} makes no network: {line_of_error(error)}") from None


def fitting_tensors(
    model: nn.Module,
    folder: Path,
    stems: Sequence[str],
    renamed: Renamed = as_named,
    numbers: bool = True,
) -> Tensors:
    """The tensors of a component's files under the names that the network has now.

    ``renamed`` knows the names of older files. Without ``numbers`` they are only looked at. Raises
    UserError where something is missing, left over or of another shape.
    """
    found, _ = read_component(folder, stems, numbers)
    tensors = renamed(found, model)
    check_fit(model, tensors, str(folder))
    return tensors


def filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A network without memory with these tensors: float32, eval, without gradients."""
    floats = {name: as_float32(value) for name, value in tensors.items()}
    model.load_state_dict(floats, assign=True)
    return model.eval().requires_grad_(False)


def as_float32(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value


def line_of_error(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
