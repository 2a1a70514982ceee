"""Pictures from a generator: one PNG a seed and a grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sid_ray.checkpoint import find_generator
from sid_ray.errors import UserError
from sid_ray.pictures import pixel_scale, save_picture, tile, to_picture
from sid_ray.sampling import one_step, sample_in_batches, seeded_latents, seeded_uniform
from sid_ray.schedules import EDMSchedule
from sid_ray.weights.folder import load_model

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


def generate_pictures(
    source: Path, seeds: Sequence[int], classes: Sequence[int] | None, out: Path, batch: int
) -> str:
    """Writes out/seed000000.png ... and out/grid.png; returns the network folder's name.

    Raises UserError for a source without a one-step generator.
    """
    folder = find_generator(source)
    net, description = load_model(folder)
    if description.one_step is None:
        raise UserError(f"{folder} is not a one-step generator: its model.json has no one_step")
    network = description.network
    schedule = EDMSchedule(init_sigma=description.one_step["sigma"])
    shape = (network["img_channels"], network["img_resolution"], network["img_resolution"])
    label_dim, labels = network["label_dim"], None
    if label_dim or classes:
        chosen = choose_classes(seeds, classes, label_dim)
        labels = torch.nn.functional.one_hot(chosen, label_dim).float()
    latents = seeded_latents(seeds, shape)
    images = sample_in_batches(
        lambda z, c: one_step(net, schedule, z, c), latents, labels, batch, pad=True
    )
    for seed, image in zip(seeds, images, strict=True):
        save_picture(to_picture(image), out / f"seed{seed:06d}.png")
    scale = pixel_scale(shape[-1])
    save_picture(tile(images, min(GRID_COLUMNS, len(images)), scale), out / "grid.png")
    return f"{folder.parent.name}/{folder.name}"
