"""Networks for the rest of the project: save one, describe one, load one from whatever holds it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from sid_ray.weights.description import (
    DESCRIPTION,
    WEIGHTS,
    ModelDescription,
    load_weights,
    read_description,
    save_model,
    write_safetensors,
)
from sid_ray.weights.formats import read_weights
from sid_ray.weights.networks import build_network
from sid_ray.weights.over_base import over_base

__all__ = [
    "DESCRIPTION",
    "WEIGHTS",
    "ModelDescription",
    "load_model",
    "load_weights",
    "read_description",
    "save_model",
    "write_safetensors",
]


def load_model(
    source: Path, like: ModelDescription | None = None, base: Path | None = None
) -> tuple[nn.Module, ModelDescription]:
    """The network of a folder or a weights file of any format, float32, eval, without gradients.

    ``like`` says which network a bare state dict is of; ``base`` is what an adapter is laid over,
    in place of the network that it notes. Raises UserError when a file is missing or
    damaged, or when names or shapes do not fit.
    """
    weights = read_weights(source)
    if weights.description is not None and weights.description.adapter is not None:
        return over_base(weights, base)
    return build_network(weights, like)
