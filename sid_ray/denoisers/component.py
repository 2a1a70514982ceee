"""One component of a diffusers folder: its config.json and its weights, checked.

Knows diffusers and transformers only through what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.errors import UserError
from sid_ray.tensor_files.tensors import check_fit, json_object, read_component

Tensors = dict[str, Tensor]
Renamed = Callable[[Mapping[str, Tensor], nn.Module], Tensors]


def as_named(found: Mapping[str, Tensor], model: nn.Module) -> Tensors:
    """Renamed of a component whose files have had the same names ever since."""
    return dict(found)


def read_config(folder: Path, class_name: str) -> dict[str, Any]:
    """A component's config.json. Raises UserError when it is missing or of another class."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"no {class_name} in {folder}: config.json is missing")
    config = json_object(path)
    named = config.get("_class_name") or (config.get("architectures") or [class_name])[0]
    if named != class_name:
        raise UserError(f"{path} describes {named}, expected {class_name}")
    if "quantization_config" in config:
        raise UserError(f"{path}: quantised weights are not supported; take the float ones")
    return config


def laid_out(make: Callable[[], nn.Module], folder: Path) -> nn.Module:
    """A component's modules without memory. Raises UserError for a config that makes none."""
    try:
        with torch.device("meta"):
            return make()
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    except Exception as error:  # of a library's constructor, which may raise anything
        path = folder / "config.json"
        raise UserError(f"{path} makes no network: {first_line(error)}") from None


def fitting(
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


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
