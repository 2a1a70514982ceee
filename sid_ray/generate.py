"""Pictures from a generator: one PNG a seed and a grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sid_ray.assemble import generation_of
from sid_ray.components import Named, find_components
from sid_ray.denoisers.spec import spec_of
from sid_ray.errors import UserError
from sid_ray.evaluation import codec_of
from sid_ray.pictures import pixel_scale, save_picture, tile, to_picture
from sid_ray.sampling import (
    Inputs,
    generator_sampler,
    sample_in_batches,
    seeded_latents,
    seeded_noises,
    seeded_uniform,
)
from sid_ray.stored import find_generator
from sid_ray.types import Condition
from sid_ray.weights.folder import ModelDescription, load_model

GRID_COLUMNS = 10


def choose_classes(seeds: Sequence[int], classes: Sequence[int] | None, label_dim: int) -> Tensor:
    """A class a seed [N]: dealt out by the seed's number, or drawn evenly by the seed.

    Raises UserError for classes that the network lacks.
    """
    if classes is None:
        return (seeded_uniform(seeds) * label_dim).long()
    wrong = [c for c in classes if c >= label_dim]
    if wrong:
        known = f"0-{label_dim - 1}" if label_dim else "no classes: leave --labels out"
        raise UserError(f"--labels holds {wrong[0]}; the network knows {known}")
    return torch.tensor([classes[seed % len(classes)] for seed in seeds])


def conditions(
    text_folder: Path | None,
    description: ModelDescription,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    prompts: Sequence[str],
) -> Condition:
    """Classes or prompts of the seeds, as the network reads them.

    A prompt a seed by the seed's number. Raises UserError where the network reads the other kind,
    or none.
    """
    spec = spec_of(description.family)
    label_dim = spec.label_dim(description.network)
    if spec.load_text is not None:
        if classes:
            raise UserError("--labels: this generator reads text, no classes; use --prompt")
        if not prompts:
            raise UserError("this generator reads text: give --prompt TEXT or --prompts FILE")
        text = spec.load_text(text_folder)
        return Condition(text=text.embed([prompts[seed % len(prompts)] for seed in seeds]))
    if prompts:
        raise UserError("--prompt: this generator reads no text; use --labels")
    if not label_dim and not classes:
        return Condition()
    chosen = choose_classes(seeds, classes, label_dim)
    return Condition(torch.nn.functional.one_hot(chosen, label_dim).float())


def generate_pictures(
    source: str | Path,
    seeds: Sequence[int],
    classes: Sequence[int] | None,
    prompts: Sequence[str],
    out: Path,
    batch: int,
    vae: str = "",
    text_encoder: str = "",
) -> str:
    """Writes out/seed000000.png ... and out/grid.png; returns the network folder's name.

    ``vae`` is a diffusers folder that turns latents into images, ``text_encoder`` one with the
    text encoder and its tokenizer; empty for the network's own, or its teacher's. Raises UserError
    for a source without a generator, or latents without a VAE.
    """
    folder = find_generator(source)
    net, description = load_model(folder)
    if description.one_step is None:
        raise UserError(f"{folder} is not a one-step generator: its model.json has no one_step")
    components = find_components(description, folder, Named(text_encoder, vae))
    codec = codec_of(description, components.vae)
    schedule, num_steps = generation_of(description.one_step)
    shape = spec_of(description.family).shape(description.network)
    inputs = Inputs(
        seeded_latents(seeds, shape),
        conditions(components.text, description, seeds, classes, prompts),
        seeded_noises(seeds, shape, num_steps),
    )
    sampler = generator_sampler(net, schedule, num_steps)
    images = codec.decode_uint8(sample_in_batches(sampler, inputs, batch, pad=True))
    for seed, image in zip(seeds, images, strict=True):
        save_picture(to_picture(image), out / f"seed{seed:06d}.png")
    scale = pixel_scale(images.shape[-1])
    save_picture(tile(images, min(GRID_COLUMNS, len(images)), scale), out / "grid.png")
    return f"{folder.parent.name}/{folder.name}"
