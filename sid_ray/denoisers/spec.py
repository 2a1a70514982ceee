"""One ModelSpec a family: everything that differs between EDM, EDM2 and Stable Diffusion.

A new family is one object here; nothing else in the project branches on a family's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.errors import UserError, nearest


def leave_weights(module: nn.Module) -> None:
    """after_step of a family without constraints on its weights."""


@dataclass(frozen=True)
class ModelSpec:
    """A family of denoisers.

    ``build`` makes the network from its JSON arguments, with random weights.
    ``after_step`` runs on a role's weights after each optimizer step (EDM2's forced weight
    normalisation; nothing for EDM).
    """

    family: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    after_step: Callable[[nn.Module], None] = leave_weights


def _build_edm(network: Mapping[str, Any]) -> nn.Module:
    try:
        return EDMDenoiser(EDMNetwork.from_json(dict(network)))
    except (TypeError, ValueError) as error:
        raise UserError(f"not an EDM network's arguments: {error}") from error


def _build_stable_diffusion(network: Mapping[str, Any]) -> nn.Module:
    from sid_ray.denoisers.stable_diffusion import build_stable_diffusion

    return build_stable_diffusion(network)


_FAMILIES = (
    ModelSpec("edm", _build_edm),
    ModelSpec("stable-diffusion", _build_stable_diffusion),
)
SPECS = {spec.family: spec for spec in _FAMILIES}


def spec_of(family: str) -> ModelSpec:
    """The ModelSpec of a family. Raises UserError for an unknown one."""
    if family not in SPECS:
        known = ", ".join(SPECS)
        raise UserError(
            f"unknown network family {family!r}; known: {known}.{nearest(family, SPECS)}"
        )
    return SPECS[family]
