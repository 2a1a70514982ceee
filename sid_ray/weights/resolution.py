"""The teacher's network at the size that a config asks for (``teacher.resolution``)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.storage.places import expanded
from sid_ray.storage.schemes import is_path
from sid_ray.weights.components import component_folder
from sid_ray.weights.description import ModelDescription
from sid_ray.weights.same import called


def sized(
    config: DistillConfig, description: ModelDescription, vae: Path | None
) -> ModelDescription:
    """The network for images of ``teacher.resolution`` a side; as it is where that is 0.

    ``vae`` is the folder of its auto-encoder, None for one of the published kind. Raises UserError
    for a network that has one size only, or not this one.
    """
    pixels, source = config.teacher.resolution, config.teacher.source
    if not pixels:
        return description
    family, factor = family_of(description.family), factor_of(description, vae)
    if not takes_sizes(description):
        raise UserError(
            f"teacher.resolution is {pixels}, but {source} is {called(description.family)}, which "
            "has one size only: leave it out"
        )
    if pixels % factor:
        raise UserError(
            f"teacher.resolution is {pixels}; the VAE of {source} divides sides by {factor}: set "
            f"a multiple of that, like {max(1, pixels // factor) * factor}"
        )
    try:
        network = family.at_resolution(description.network, pixels, factor)
    except UserError as error:
        raise UserError(
            f"teacher.resolution is {pixels}, which {source} cannot have: {error}"
        ) from None
    if network is None or family.shape(network) == family.shape(description.network):
        return description  # one way of saying its own size
    return dataclasses.replace(description, network=network)


def takes_sizes(description: ModelDescription) -> bool:
    """Whether a network can have another size than its own."""
    family, network = family_of(description.family), description.network
    return family.at_resolution(network, family.shape(network)[1], 1) is not None


def factor_of(description: ModelDescription, vae: Path | None) -> int:
    """By how much a network's samples are smaller than its pictures. Raises UserError."""
    family = family_of(description.family)
    if not family.makes_latents(description.network):
        return 1
    latents = family.latent_convention()
    return latents.usual_factor if vae is None else latents.factor(latents.check(vae))


def vae_here(config: DistillConfig, teacher: Path) -> Path | None:
    """The folder of the teacher's VAE where it is named by its path or lies beside it."""
    named = config.teacher.vae
    if named and is_path(named):
        return component_folder(expanded(named), "vae")
    return teacher if not named and (teacher / "vae").is_dir() else None
