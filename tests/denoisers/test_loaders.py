"""Programs of exports evaluate EDM's and EDM2's networks as this package does."""

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_ray.denoisers.registry import family_of
from sid_ray.denoisers.stock import LOADERS
from sid_ray.evaluation.samplers import Inputs, generator_sampler, seeded_latents, seeded_noises
from sid_ray.training.assemble import generation_of
from sid_ray.types import Condition
from sid_ray.weights.description import ModelDescription, save_model

SMALL: dict[str, Any] = {
    "img_resolution": 16,
    "img_channels": 3,
    "model_channels": 16,
    "num_blocks": 1,
    "channel_mult": [1, 2],
    "attn_resolutions": [8],
}
NCSNPP = {"embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm++": ("edm", {"label_dim": 5, "augment_dim": 9}),
    "ncsn++": ("edm", {**NCSNPP, "encoder_type": "residual"}),
    "skips": ("edm", {**NCSNPP, "encoder_type": "skip", "decoder_type": "skip"}),
    "adm": ("edm", {"model_type": "DhariwalUNet", "model_channels": 64, "label_dim": 5}),
    "edm2": ("edm2", {"label_dim": 5, "channels_per_head": 8, "img_channels": 4}),
    "edm2 filter": ("edm2", {"channels_per_head": 8, "resample_filter": [1, 3, 3, 1]}),
}


def filled(family: str, network: dict[str, Any]) -> torch.nn.Module:
    """A network none of whose weights is near 0 everywhere."""
    torch.manual_seed(0)
    made = family_of(family).build(network)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def save_written_out(folder: Path, made: torch.nn.Module, description: ModelDescription) -> None:
    """As exports do."""
    network = family_of(description.family).written_out(description.network)
    save_model(folder, made.state_dict(), replace(description, network=network))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_program_makes_our_images(name, steps, tmp_path):
    family, other = NETWORKS[name]
    network = SMALL | other
    made = filled(family, network)
    description = ModelDescription(family, network, {"sigma": 2.5, "num_steps": steps})
    save_written_out(tmp_path, made, description)
    shape, seeds = family_of(family).shape(network), range(3)
    labels = torch.eye(5)[:3] if "label_dim" in other else None
    noises = seeded_noises(seeds, shape, steps)
    inputs = Inputs(seeded_latents(seeds, shape), Condition(labels), noises)
    ours = generator_sampler(made, *generation_of(description))(inputs)
    program = runpy.run_path(str(LOADERS / family_of(family).loader))
    later = () if noises is None else noises.transpose(0, 1)
    theirs = program["load"](tmp_path)(inputs.latents, labels, later)
    assert (theirs - ours).abs().max() < 1e-5 * ours.abs().max()
    if labels is not None:
        told_none = program["load"](tmp_path)(inputs.latents, None, later)
        assert (told_none - theirs).abs().max() > 1e-3 * ours.abs().max()


def test_the_program_draws_by_seed_and_writes_a_picture(tmp_path):
    network = SMALL | {"label_dim": 5}
    made = filled("edm", network)
    save_written_out(tmp_path, made, ModelDescription("edm", network, {"sigma": 2.5}))
    program = runpy.run_path(str(LOADERS / "edm.py"))
    generator = program["load"](tmp_path)
    together = generator.sample([4, 7], [1, 2])
    alone = generator.sample([7], [2])
    assert (together[1] - alone[0]).abs().max() < 1e-5
    program["save_grid"](together, tmp_path / "images.png", columns=1)
    from PIL import Image

    with Image.open(tmp_path / "images.png") as picture:
        assert picture.size == (16, 32)
