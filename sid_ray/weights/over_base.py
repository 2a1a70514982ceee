"""A network whose file holds an adapter alone: its tensors over the base that it notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sid_ray.denoisers.adapters import laid_over
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.formats import LoadedWeights
from sid_ray.weights.networks import fitted, load_path, rebuilt
from sid_ray.weights.same import unlike
from sid_ray.weights.teacher import noted_teacher


def over_base(
    weights: LoadedWeights, base: Path | None = None
) -> tuple[nn.Module, ModelDescription]:
    """An adapter's network, float32, eval, without gradients. ``base`` in place of the noted one.

    Raises UserError where the base is not here, or is another network.
    """
    label = weights.label
    _, description, tensors = fitted(weights)
    assert description.adapter is not None
    network, own = load_path(base or noted_teacher(description.notes, label))
    plain = replace(description, adapter=None)
    found = unlike(at_size_of(own, plain), plain)
    if found is not None:
        raise UserError(f"{label} is an adapter of {found[1]}; its base is {found[0]}")
    if own.network != plain.network:
        network = rebuilt(network, plain)
    tree = laid_over(network, description.adapter)
    tree.load_state_dict({name: value.to(torch.float32) for name, value in tensors.items()})
    return tree.eval().requires_grad_(False), description


def at_size_of(one: ModelDescription, other: ModelDescription) -> ModelDescription:
    """A network at another one's size, where it takes several."""
    if one.family != other.family:
        return one
    family = family_of(one.family)
    network = family.at_resolution(one.network, family.shape(other.network)[1], 1)
    return one if network is None else replace(one, network=network)
