"""Measures the flow-matching teacher that ships with sid_ray, and writes its card.

    python examples/measure_flow_teacher.py --out sid_ray/assets/emoji-flow

What the folder holds (train_flow_teacher.py has trained it) is sampled with its own method, and read
as a generator at its start, before any distillation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor
from train_flow_teacher import Args as Training

from sid_ray.config.sections import DataConfig
from sid_ray.data.emoji import SHAPE, load_emoji
from sid_ray.data.source import open_source
from sid_ray.denoisers.noise import Solve
from sid_ray.denoisers.registry import family_of
from sid_ray.evaluation.pictures import save_picture, tile
from sid_ray.evaluation.samplers import (
    Inputs,
    generator_sampler,
    index_of,
    inputs_of_seeds,
    sample_in_batches,
)
from sid_ray.metrics.features import load_feature_space
from sid_ray.types import Denoiser
from sid_ray.weights.networks import load_path


@dataclass
class Args:
    """Measurement of a flow-matching teacher."""

    out: Path = Path("sid_ray/assets/emoji-flow")
    """The pipeline's folder, which gets the card."""
    images: int = 2048
    """Generated images of each measurement."""
    picture: Path | None = None
    """PNG to draw: a row of real emoji, then a row of every measurement."""


# (evaluations, guidance scale) of Euler's method, and without a scale those of a generator at its
# start: the teacher itself, with fresh noise between its evaluations.
MEASURED: tuple[tuple[int, float | None], ...] = ((28, 1.0), (28, 2.0), (4, None), (1, None))


@torch.no_grad()
def measure(args: Args) -> tuple[list[tuple[str, float, float]], int]:
    """(what, Frechet distance, class accuracy) of the folder, of the same seeds and captions; the
    number of the transformer's parameters.
    """
    net, description = load_path(args.out)
    family = family_of(description.family)
    noise = family.noise
    text = family.load_text(args.out, network=description.network)
    chosen = noise.of_network(args.out, description.network, SHAPE[-1])
    source = open_source(DataConfig(name="emoji"), SHAPE, text.embed)
    space, seeds = load_feature_space("emoji-cnn"), range(args.images)
    index = index_of(source, seeds)
    classes = source.labels(index)
    images = {"real images with these captions": load_emoji().images[index]}
    for steps, scale in MEASURED:
        start = time.process_time()
        if scale is None:
            name = f"generator's start, {steps} evaluation{'s' * (steps > 1)}"
            sampler = generator_sampler(net, noise.schedule(chosen), steps)
        else:
            name = f"Euler, {steps} steps, guidance scale {scale:g}"
            sampler = partial(solved, noise.sampler(chosen, steps, scale).run, net, text.null())
        inputs = inputs_of_seeds(source, seeds, index, 1 if scale else steps)
        images[name] = sample_in_batches(sampler, inputs)
        print(f"{name}: {time.process_time() - start:.0f} CPU-seconds", flush=True)
    if args.picture:
        save_picture(tile(torch.cat([v[:24] for v in images.values()]), 24, 3), args.picture)
    rows = [
        (name, space.frechet_distance(made), space.class_accuracy(made, classes))
        for name, made in images.items()
    ]
    return rows, sum(p.numel() for p in net.parameters())


def solved(run: Solve, net: Denoiser, null: Tensor, inputs: Inputs) -> Tensor:
    return run(net, inputs.latents, inputs.cond, null)


def card(count: int, rows: Sequence[tuple[str, float, float]], parameters: int) -> str:
    """The card that ships beside the weights."""
    trained = Training()
    table = "\n".join(f"| {name} | {fd:.2f} | {hits:.1%} |" for name, fd, hits in rows)
    return f"""---
license: cc-by-4.0
attribution: "Twemoji,
  Copyright Twitter, Inc and other contributors, CC-BY 4.0, made smaller; a network trained on it"
---

# emoji-flow

A small text-to-image teacher in Stable Diffusion 3's shape (SD3Transformer2DModel of {parameters:,}
parameters that predicts the velocity, two CLIP text encoders of two layers, no T5; no VAE, it works on
{SHAPE[1]}x{SHAPE[2]} pixels), trained by `examples/train_flow_teacher.py` on the {len(load_emoji().captions):,} pictures and captions
of `emoji-16`: Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0. A diffusers folder;
weights are float16.

{trained.images:,} images in batches of {trained.batch_size}, peak learning rate {trained.lr:g}, times sigmoid-normal with shift {trained.shift:g},
{trained.text_dropout:.0%} of the captions left out, seed {trained.seed}.

| {count:,} images, captions drawn from the data | Frechet distance | class accuracy |
|---|---|---|
{table}

Frechet distances are of images truncated to 8 bits, in the feature space `emoji-cnn`, which is no FID; class
accuracy is the share of images that its classifier puts into their caption's category. The captions are those
of training: this measures how well they are drawn, not what is made of new ones. For tests and teaching only.
"""


def main(args: Args) -> None:
    torch.set_num_threads(1)
    rows, parameters = measure(args)
    for name, distance, hits in rows:
        print(f"{name:36} distance {distance:7.2f}  class accuracy {hits:.3f}")
    (args.out / "README.md").write_text(card(args.images, rows, parameters))


if __name__ == "__main__":
    main(tyro.cli(Args))
