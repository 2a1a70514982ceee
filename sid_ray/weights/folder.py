"""A network in a folder: ``model.safetensors`` and ``model.json`` that names the network.

The format of teachers, EMA generators and anything else that is a network and nothing more. Nothing
in it is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sid_ray.denoisers.spec import spec_of
from sid_ray.errors import UserError

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class ModelDescription:
    """What model.json holds: the family, its arguments, how one step is made, free notes."""

    family: str
    network: Mapping[str, Any]
    one_step: Mapping[str, float] | None = None  # {"sigma": 2.5}: a one-step generator's input
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        values = {"family": self.family, "network": dict(self.network)}
        if self.one_step is not None:
            values["one_step"] = dict(self.one_step)
        return json.dumps(values | {"notes": dict(self.notes)}, indent=2) + "\n"


def save_model(folder: Path, weights: Mapping[str, Tensor], description: ModelDescription) -> None:
    """Writes the folder; weights are stored as they are, contiguous."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(description.to_json())


def read_description(folder: Path) -> ModelDescription:
    """Reads model.json. Raises UserError when it is missing or is not one."""
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text())
        return ModelDescription(**values)
    except FileNotFoundError:
        raise UserError(f"no network in {folder}: {DESCRIPTION} is missing") from None
    except (json.JSONDecodeError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} does not describe a network: {error}") from error


def load_model(folder: Path) -> tuple[nn.Module, ModelDescription]:
    """The network of a folder, float32, eval, without gradients.

    Raises UserError when a file is missing or damaged, or when names or shapes do not fit.
    """
    description = read_description(folder)
    model = spec_of(description.family).build(description.network)
    load_weights(model, folder / WEIGHTS)
    return model.eval().requires_grad_(False), description


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a safetensors file by name: nothing missing, nothing left over, shapes equal."""
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(n for n in expected | found if expected.get(n) != found.get(n))
        name = wrong[0]
        raise UserError(
            f"{path} does not fit the network: {len(wrong)} tensors differ, the first is {name!r} "
            f"with shape {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
        )
    model.load_state_dict({name: value.to(torch.float32) for name, value in weights.items()})
