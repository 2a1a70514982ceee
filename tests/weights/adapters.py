"""Adapters of tiny networks as runs store them, with numbers drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sid_ray.config.sections import ScheduleConfig
from sid_ray.denoisers.adapters import Adapter, with_adapter
from sid_ray.denoisers.registry import family_of
from sid_ray.weights.base import BASE, base_sha256
from sid_ray.weights.description import ModelDescription, save_model
from sid_ray.weights.networks import load_path

RANK, ALPHA = 3, 7.5


def filled_adapter(base: nn.Module, adapter: Adapter, seed: int = 5) -> nn.Module:
    """A network over a base whose A and B are drawn: changes of about a tenth of its weights."""
    torch.manual_seed(seed)
    network = with_adapter(base, adapter)
    for value in network.parameters():
        value.copy_(0.2 * torch.randn_like(value))
    return network


def write_adapter(
    folder: Path,
    base: Path,
    rank: int = RANK,
    alpha: float = ALPHA,
    notes: Mapping[str, Any] = {},
    seed: int = 5,
) -> nn.Module:
    """The folder of a generator's adapter over a teacher, as runs leave it; its network."""
    network, own = load_path(base)
    family = family_of(own.family)
    adapter = Adapter(rank, alpha, family.adapter_targets)
    made = filled_adapter(network, adapter, seed)
    said = {"teacher": str(base), BASE: base_sha256(base), **notes}
    steps = family.noise.one_step(ScheduleConfig(kind=family.noise.kind))
    description = ModelDescription(own.family, own.network, steps, said, adapter.to_json())
    save_model(folder, made.state_dict(), description)
    return made
