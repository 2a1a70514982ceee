"""Trains the small text-to-image teacher that ships with sid_ray: emoji, 16x16, from captions.

    python examples/train_emoji_teacher.py --out sid_ray/assets/emoji-teacher

A Stable Diffusion in small, in a diffusers folder: a UNet2DConditionModel that predicts epsilon,
a CLIP text encoder trained with it, a CLIP tokenizer whose merges are learned from the captions,
and Stable Diffusion's noise levels. It works on pixels: there is no VAE. The loss is the
fake-score loss of SiD-LSG on real images, the plain squared error of epsilon, timesteps drawn evenly
from all 1,000. At the end the written folder is measured, and the numbers are put into its card.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from diffusers import UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sid_ray.config.sections import DataConfig
from sid_ray.data.emoji import SHAPE, load_emoji
from sid_ray.data.source import open_source
from sid_ray.denoisers.clip_text import load_text, load_tokenizer
from sid_ray.denoisers.guidance import Guided
from sid_ray.denoisers.stable_diffusion import StableDiffusionDenoiser, load_denoiser, load_schedule
from sid_ray.diffusion.rng import TEACHER, generator_for
from sid_ray.diffusion.schedules import DiscreteVPSchedule
from sid_ray.diffusion.solvers import ddim
from sid_ray.distributed.ema import ema_beta, update_ema
from sid_ray.evaluation.pictures import save_picture, tile
from sid_ray.evaluation.samplers import (
    Inputs,
    Sampler,
    generator_sampler,
    inputs_of_seeds,
    sample_in_batches,
    seeded_uniform,
)
from sid_ray.metrics.features import load_feature_space
from sid_ray.objectives.functional import denoising_loss
from sid_ray.types import Condition, Denoiser, Want

TOKENS = 16  # the longest caption has fewer words; longer prompts are cut
WIDTH = 64  # of a token's embedding
START, END = "<|startoftext|>", "<|endoftext|>"
UNET = {
    "sample_size": SHAPE[1],
    "in_channels": SHAPE[0],
    "out_channels": SHAPE[0],
    "layers_per_block": 1,
    "block_out_channels": [16, 32, 64],
    # Text enters at 4x4 only: attention at 8x8 costs a third of a pass more on a CPU.
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,  # diffusers' name for the number of heads
    "norm_num_groups": 8,
}


@dataclass
class Args:
    """Training of an emoji teacher."""

    out: Path = Path("sid_ray/assets/emoji-teacher")
    """Folder for the pipeline."""
    images: int = 700_000
    """Images to train on, repetitions counted."""
    batch_size: int = 64
    lr: float = 2e-3
    """Peak learning rate: 10,000 images of warm-up, then a cosine to zero."""
    text_dropout: float = 0.1
    """Share of captions replaced by the empty one, for guidance."""
    ema_half_life: int = 20_000
    """Half-life of the weights' average, in images."""
    seed: int = 0
    report_every: int = 20_000
    """Images between two printed reports."""
    train: bool = True
    """Without it, what is in the folder is measured again."""
    measured_images: int = 2048
    """Generated images of each measurement."""
    picture: Path | None = None
    """PNG to draw: a row of real emoji, then a row of every measurement."""


class Pipeline(nn.Module):
    """U-Net and text encoder, trained and averaged together."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.denoiser = StableDiffusionDenoiser(UNet2DConditionModel(**UNET))
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                projection_dim=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TOKENS,
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
                pad_token_id=vocabulary - 1,
            )
        )


def write_tokenizer(captions: tuple[str, ...], folder: Path, size: int = 1024) -> None:
    """A CLIP tokenizer of about ``size`` tokens: vocab.json, merges.txt and its config."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # Every letter and digit, within a word and at its end: prompts are not only captions.
    letters = "abcdefghijklmnopqrstuvwxyz0123456789'-.,!?&()"
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix="</w>", initial_alphabet=list(letters)
    )
    tokenizer.train_from_iterator([*captions, *(" ".join(letters),)], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(learned["vocab"], key=learned["vocab"].get)
    tokens = list(dict.fromkeys([*tokens, *(f"{letter}</w>" for letter in letters), START, END]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learned["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def learning_rate(args: Args, images_seen: int) -> float:
    warm_up = min(images_seen / 10_000, 1)
    return args.lr * warm_up * 0.5 * (1 + math.cos(math.pi * images_seen / args.images))


def tokens_of(folder: Path, captions: tuple[str, ...]) -> Tensor:
    """Token ids [N + 1, TOKENS] of the captions, and of the empty one in the last row."""
    tokenizer = load_tokenizer(folder)
    shape = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
    return tokenizer([*captions, ""], return_tensors="pt", **shape).input_ids


def train(args: Args, tokens: Tensor, vocabulary: int) -> Pipeline:
    """The averaged pipeline after args.images images."""
    torch.manual_seed(args.seed)
    emoji, schedule = load_emoji(), DiscreteVPSchedule(t_min=0, t_max=1000)
    model = Pipeline(vocabulary)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    start, seen, errors = time.monotonic(), 0, []
    while seen < args.images:
        rng = generator_for(args.seed, TEACHER, seen)
        chosen = torch.randint(len(emoji.images), (args.batch_size,), generator=rng)
        x_0 = emoji.images[chosen]
        dropped = torch.rand(args.batch_size, generator=rng) < args.text_dropout
        text = model.text(input_ids=tokens[torch.where(dropped, len(tokens) - 1, chosen)])
        level = schedule.fake_level(torch.rand(args.batch_size, generator=rng))
        noise = torch.randn(x_0.shape, generator=rng)
        x_t = schedule.add_noise(x_0, noise, level)
        found = model.denoiser(x_t, level, Condition(text=text.last_hidden_state), Want.RAW)
        loss = denoising_loss(*schedule.fake_terms(found, x_0, noise, level)).mean()
        optimizer.param_groups[0]["lr"] = learning_rate(args, seen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        beta = ema_beta(seen, args.batch_size, args.ema_half_life, rampup=0.05)
        update_ema(average.parameters(), model.parameters(), beta)
        seen += args.batch_size
        errors.append(loss.item())
        if seen % args.report_every < args.batch_size:
            spent = time.monotonic() - start
            left = spent / seen * (args.images - seen)
            mean = sum(errors) / len(errors)
            print(
                f"{seen:8,} images  {spent:5.0f} s, {left:5.0f} s left  loss {mean:.4f}", flush=True
            )
            save(average, args.out)
            errors.clear()
    return average


def save(model: Pipeline, out: Path) -> None:
    """The diffusers folder; weights as float16, half the size and far below their own noise."""
    half = copy.deepcopy(model).half()
    half.denoiser.unet.save_pretrained(out / "unet")
    half.text.save_pretrained(out / "text_encoder")
    for path in out.glob("*/*.safetensors"):
        path.chmod(0o644)  # safetensors leaves new files to their owner alone
    schedule = DiscreteVPSchedule()
    (out / "scheduler").mkdir(parents=True, exist_ok=True)
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "prediction_type": schedule.prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": True,
    }
    path = out / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(scheduler, indent=2) + "\n")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


# (evaluations, guidance scale) of DDIM; (1, 1) is the generator's own start, from timestep 625.
MEASURED = ((25, 1.0), (25, 1.5), (25, 2.0), (50, 1.5), (1, 1.0))


def ddim_sampler(net: Denoiser, schedule: DiscreteVPSchedule, steps: int, inputs: Inputs) -> Tensor:
    return ddim(net, schedule, inputs.latents, inputs.cond, steps)


@torch.no_grad()
def measure(args: Args) -> list[tuple[str, float, float]]:
    """(what, Frechet distance, class accuracy) of the folder, of the same seeds and captions."""
    net, schedule, text = load_denoiser(args.out), load_schedule(args.out), load_text(args.out)
    source = open_source(DataConfig(name="emoji"), SHAPE, text.embed)
    space, seeds = load_feature_space("emoji-cnn"), range(args.measured_images)
    chosen = source.index(seeded_uniform(seeds))
    inputs, classes = inputs_of_seeds(source, seeds, chosen), source.labels(chosen)
    images = {"real images with these captions": load_emoji().images[chosen]}
    for steps, scale in MEASURED:
        start, guided = time.process_time(), Guided(net, scale, text.null())
        name = f"DDIM, {steps} steps, guidance scale {scale:g}"
        sampler: Sampler = partial(ddim_sampler, guided, schedule, steps)
        if steps == 1:
            name = f"one evaluation, from timestep {schedule.init_timestep}"
            sampler = generator_sampler(guided, schedule)
        images[name] = sample_in_batches(sampler, inputs)
        print(f"{name}: {time.process_time() - start:.0f} CPU-seconds", flush=True)
    if args.picture:
        save_picture(tile(torch.cat([v[:24] for v in images.values()]), 24, 3), args.picture)
    return [
        (name, space.frechet_distance(made), space.class_accuracy(made, classes))
        for name, made in images.items()
    ]


def card(args: Args, rows: Sequence[tuple[str, float, float]], parameters: int) -> str:
    """The card that ships beside the weights."""
    table = "\n".join(f"| {name} | {fd:.2f} | {hits:.1%} |" for name, fd, hits in rows)
    return f"""---
license: cc-by-4.0
attribution: "Twemoji,
  Copyright Twitter, Inc and other contributors, CC-BY 4.0, made smaller; a network trained on it"
---

# emoji-teacher

A small text-to-image teacher in Stable Diffusion's shape (U-Net of {parameters:,} parameters, CLIP text
encoder of two layers, epsilon, 1,000 timesteps; no VAE, it works on {SHAPE[1]}x{SHAPE[2]} pixels), trained by
`examples/train_emoji_teacher.py` on the {len(load_emoji().captions):,} pictures and captions of `emoji-16`: Twemoji,
Copyright Twitter, Inc and other contributors, CC-BY 4.0. A diffusers folder; weights are float16.

{args.images:,} images in batches of {args.batch_size}, peak learning rate {args.lr:g}, {args.text_dropout:.0%} of the captions
left out, seed {args.seed}.

| {args.measured_images:,} images, captions drawn from the data | Frechet distance | class accuracy |
|---|---|---|
{table}

Frechet distances are in the feature space `emoji-cnn`, which is no FID; class accuracy is the share of
images that its classifier puts into their caption's category. The captions are those of training: this
measures how well they are drawn, not what is made of new ones. For tests and teaching only.
"""


def main(args: Args) -> None:
    torch.set_num_threads(1)
    if args.train:
        captions = load_emoji().captions
        write_tokenizer(captions, args.out / "tokenizer")
        vocabulary = len(json.loads((args.out / "tokenizer" / "vocab.json").read_text()))
        save(train(args, tokens_of(args.out / "tokenizer", captions), vocabulary), args.out)
    rows = measure(args)
    for name, distance, hits in rows:
        print(f"{name:36} distance {distance:7.2f}  class accuracy {hits:.3f}")
    parameters = sum(p.numel() for p in load_denoiser(args.out).parameters())
    (args.out / "README.md").write_text(card(args, rows, parameters))
    print(f"{time.process_time():.0f} CPU-seconds")


if __name__ == "__main__":
    main(tyro.cli(Args))
