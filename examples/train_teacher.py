"""Trains the small EDM teacher that ships with sid_ray: digits, 8x8, class-conditional.

    python examples/train_teacher.py --out sid_ray/assets/digits-teacher

The EDM loss is the fake-score loss on real images, so it is the same function. Progress and the
Frechet distance (feature space digits-cnn) are printed; the folder holds the weights as
safetensors, model.json and a card.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from sid_ray.config.sections import DataConfig
from sid_ray.data.digits import LABEL_DIM, SHAPE, load_digits
from sid_ray.data.source import open_source
from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.diffusion.rng import TEACHER, generator_for
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.diffusion.solvers import heun
from sid_ray.distributed.ema import ema_beta, update_ema
from sid_ray.evaluation.samplers import generator_sampler, sample_in_batches, seeded_inputs
from sid_ray.metrics.features import load_feature_space
from sid_ray.objectives.functional import denoising_loss
from sid_ray.types import Condition
from sid_ray.weights.folder import ModelDescription, save_model


@dataclass
class Args:
    """Training of a digits teacher."""

    out: Path = Path("sid_ray/assets/digits-teacher")
    """Folder for the network."""
    images: int = 500_000
    """Images to train on, repetitions counted."""
    batch_size: int = 128
    lr: float = 2e-3
    """Peak learning rate: 10,000 images of warm-up, then a cosine to zero."""
    ema_half_life: int = 20_000
    """Half-life of the weights' average, in images."""
    seed: int = 0
    report_every: int = 50_000
    """Images between two printed reports."""


NETWORK = EDMNetwork(
    img_resolution=8,
    img_channels=1,
    label_dim=LABEL_DIM,
    model_channels=32,
    channel_mult=(1, 2),
    channel_mult_emb=2,
    num_blocks=1,
    attn_resolutions=(4,),
    dropout=0.0,
)


def learning_rate(args: Args, images_seen: int) -> float:
    warm_up = min(images_seen / 10_000, 1)
    return args.lr * warm_up * 0.5 * (1 + math.cos(math.pi * images_seen / args.images))


def measure(net: EDMDenoiser, schedule: EDMSchedule, num_images: int) -> dict[str, float]:
    """Frechet distances at 35 evaluations and at one, of the same seeds."""
    space = load_feature_space("digits-cnn")
    inputs = seeded_inputs(open_source(DataConfig(name="digits"), SHAPE), range(num_images))
    many = sample_in_batches(lambda i: heun(net, schedule, i.latents, i.cond), inputs)
    one = sample_in_batches(generator_sampler(net, schedule), inputs)
    return {
        "frechet_distance_35": round(space.frechet_distance(many), 3),
        "frechet_distance_1": round(space.frechet_distance(one), 3),
    }


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    images, classes = load_digits()
    one_hot = torch.eye(LABEL_DIM)[classes]
    schedule = EDMSchedule()
    net = EDMDenoiser(NETWORK)
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.999))
    start, seen = time.monotonic(), 0
    while seen < args.images:
        rng = generator_for(args.seed, TEACHER, seen)
        chosen = torch.randint(len(images), (args.batch_size,), generator=rng)
        x_0, labels = images[chosen], one_hot[chosen]
        level = schedule.fake_level(torch.randn(args.batch_size, generator=rng))
        noise = torch.randn(x_0.shape, generator=rng)
        denoised = net(schedule.add_noise(x_0, noise, level), level, Condition(labels)).x0
        loss = denoising_loss(denoised, x_0, schedule.fake_weight(level)).mean()
        optimizer.param_groups[0]["lr"] = learning_rate(args, seen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        beta = ema_beta(seen, args.batch_size, args.ema_half_life, rampup=0.05)
        update_ema(average.parameters(), net.parameters(), beta)
        seen += args.batch_size
        if seen % args.report_every < args.batch_size:
            spent = time.monotonic() - start
            scores = measure(average, schedule, 512)
            print(f"{seen:8,} images  {spent:5.0f} s  loss {loss.item():.4f}  {scores}", flush=True)
    notes = {
        "data": "scikit-learn digits, 1,797 images of 8x8",
        "images_seen": seen,
        "seed": args.seed,
        "lr": args.lr,
        "batch_size": args.batch_size,
        "feature_space": "digits-cnn",
        **measure(average, schedule, 2048),
    }
    print(notes, f"{time.process_time():.0f} CPU-seconds")
    network = NETWORK.to_json()
    save_model(args.out, average.state_dict(), ModelDescription("edm", network, notes=notes))
    (args.out / "README.md").write_text(card(notes, sum(p.numel() for p in net.parameters())))


def card(notes: dict, parameters: int) -> str:
    """The model card that ships beside the weights."""
    return f"""---
license: cc-by-4.0
attribution: "Optical Recognition of Handwritten Digits by
  E. Alpaydin and C. Kaynak, CC BY 4.0; a network trained on it"
---

# digits-teacher

A class-conditional EDM network (DDPM++, {parameters:,} parameters, 8x8 pixels, 10 classes), trained by
`examples/train_teacher.py`; the network's arguments are in `model.json`.

| | |
|---|---|
| data | {notes["data"]} (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, CC BY 4.0) |
| images seen | {notes["images_seen"]:,}, batches of {notes["batch_size"]}, peak learning rate {notes["lr"]} |
| seed | {notes["seed"]} |
| Frechet distance, 35 evaluations | {notes["frechet_distance_35"]} |
| Frechet distance, 1 evaluation | {notes["frechet_distance_1"]} |

Distances are of 2,048 images in the feature space `{notes["feature_space"]}`, against all 1,797 real
images; they are not FIDs. For use as a test and teaching object only.
"""


if __name__ == "__main__":
    main(tyro.cli(Args))
