"""Trains the small flow-matching teacher that ships with sid_ray: emoji, 16x16, from captions.

    python examples/train_flow_teacher.py --out sid_ray/assets/emoji-flow
    python examples/measure_flow_teacher.py --out sid_ray/assets/emoji-flow

Stable Diffusion 3 in small, in a diffusers folder: an SD3Transformer2DModel that predicts the
velocity eps - x and two CLIP text encoders trained with it. It has no T5, nor the zeros that may
stand for one, and works on pixels: there is no VAE. The loss is the plain squared error of the velocity at sigmoid-normal
times. An unfinished training goes on from ``--checkpoint``.

Symbols
    x, eps   image; noise         t   time: 0 is the image, 1 the noise         v   eps - x
    B        batch                L, E, P   tokens; widths of a token's and of the pooled embedding
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from sid_ray.data.emoji import SHAPE, load_emoji
from sid_ray.denoisers.clip_text import load_tokenizer
from sid_ray.denoisers.prompt_layout import Prompt
from sid_ray.diffusion.flow import shifted
from sid_ray.diffusion.rng import TEACHER, generator_for
from sid_ray.distributed.ema import ema_beta, update_ema

TOKENS = 12  # of a CLIP; 1 caption in 50 has more and is cut
TEXT = 64  # width of each of the two CLIPs, and of what it pools
ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
TRANSFORMER = {
    "sample_size": SHAPE[1],
    "in_channels": SHAPE[0],
    "out_channels": SHAPE[0],
    # 16 patches of 4x4: what counts on a CPU is the number of tokens, and memory for 1,918
    # pictures is in the weights that modulate them, which are used once an image.
    "patch_size": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "caption_projection_dim": 128,
    "joint_attention_dim": 2 * TEXT,
    "pooled_projection_dim": 2 * TEXT,
    "pos_embed_max_size": 4,
    "qk_norm": "rms_norm",
}


@dataclass
class Args:
    """Training of a flow-matching teacher."""

    out: Path = Path("sid_ray/assets/emoji-flow")
    """Folder for the pipeline."""
    tokenizer: Path = Path("sid_ray/assets/emoji-teacher/tokenizer")
    """CLIP tokenizer of these captions (examples/train_emoji_teacher.py learns it)."""
    images: int = 110_000
    """Images to train on, repetitions counted."""
    batch_size: int = 32
    lr: float = 3e-3
    """Learning rate: 3,000 images of warm-up, and a fall to zero over the last part."""
    fall: float = 0.45
    """The last part, as a share of the images."""
    shift: float = 1.5
    """Of the times: shift t / (1 + (shift - 1) t) with t = sigmoid(n), n normal."""
    text_dropout: float = 0.1
    """Share of captions replaced by the empty one, for guidance."""
    ema_half_life: int = 5_000
    """Half-life of the weights' average, in images."""
    seed: int = 0
    report_every: int = 5_000
    """Images between two printed reports, folders and checkpoints."""
    checkpoint: Path = Path("emoji-flow.pt")
    """Where training stands; an existing one is gone on from."""


class Pipeline(nn.Module):
    """Transformer and text encoders, trained and averaged together."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.transformer: Any = SD3Transformer2DModel(**TRANSFORMER)
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT,
            intermediate_size=2 * TEXT,
            projection_dim=TEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
        self.text: Any = nn.ModuleList(CLIPTextModelWithProjection(config) for _ in ENCODERS)

    def prompt(self, tokens: Tensor) -> Prompt:
        """What SD3 reads of token ids [B, L]: the CLIPs' states before their last layer, side by
        side, [B, L, E], and the projections of both, [B, P].
        """
        found = [clip(input_ids=tokens, output_hidden_states=True) for clip in self.text]
        states = torch.cat([one.hidden_states[-2] for one in found], dim=2)
        pooled = torch.cat([one.text_embeds for one in found], dim=1)
        return Prompt(states, pooled)

    def velocity(self, x_t: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        return self.transformer(
            hidden_states=x_t,
            timestep=1000 * t,
            encoder_hidden_states=prompt.tokens,
            pooled_projections=prompt.pooled,
            return_dict=False,
        )[0]


def write_tokenizers(args: Args) -> int:
    """The tokenizer, twice, for prompts of TOKENS tokens; returns how many tokens it knows."""
    config = json.loads((args.tokenizer / "tokenizer_config.json").read_text())
    config["model_max_length"] = TOKENS
    for name in TOKENIZERS:
        shutil.copytree(args.tokenizer, args.out / name, dirs_exist_ok=True)
        (args.out / name / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return len(json.loads((args.tokenizer / "vocab.json").read_text()))


def tokens_of(folder: Path, captions: tuple[str, ...]) -> Tensor:
    """Token ids [N + 1, TOKENS] of the captions, and of the empty one in the last row."""
    shape = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
    return load_tokenizer(folder)([*captions, ""], return_tensors="pt", **shape).input_ids


def learning_rate(args: Args, seen: int) -> float:
    left = (args.images - seen) / (args.fall * args.images)
    return args.lr * min(seen / 3_000, 1, left)


class Training:
    """A pipeline, its average and its optimizer; all but the images of a step is in ``state``."""

    def __init__(self, args: Args, vocabulary: int):
        torch.manual_seed(args.seed)
        self.args, self.seen = args, 0
        self.model = Pipeline(vocabulary)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        if args.checkpoint.is_file():
            state = torch.load(args.checkpoint, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.seen = state["seen"]

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("model", "average")}
        state |= {"optimizer": self.optimizer.state_dict(), "seen": self.seen}
        new = self.args.checkpoint.with_suffix(".new")
        torch.save(state, new)
        new.replace(self.args.checkpoint)
        save_pipeline(self.average, self.args)

    def step(self, images: Tensor, tokens: Tensor) -> float:
        """One update; the loss. images [N, C, H, W], tokens [N + 1, L]."""
        args = self.args
        rng = generator_for(args.seed, TEACHER, self.seen)
        chosen = torch.randint(len(images), (args.batch_size,), generator=rng)
        dropped = torch.rand(args.batch_size, generator=rng) < args.text_dropout
        # A normal number out of each of as many equal parts of all: less noise in the gradient.
        parts = torch.arange(args.batch_size) + torch.rand(args.batch_size, generator=rng)
        normal = torch.special.ndtri(parts.clamp(1e-4, None) / args.batch_size)
        t, x = shifted(normal.sigmoid(), args.shift), images[chosen]
        noise = torch.randn(x.shape, generator=rng)
        at = t[:, None, None, None]
        prompt = self.model.prompt(tokens[torch.where(dropped, len(tokens) - 1, chosen)])
        found = self.model.velocity((1 - at) * x + at * noise, t, prompt)
        loss = (found - (noise - x)).square().mean()
        self.optimizer.param_groups[0]["lr"] = learning_rate(args, self.seen)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        beta = ema_beta(self.seen, args.batch_size, args.ema_half_life, rampup=0.05)
        update_ema(self.average.parameters(), self.model.parameters(), beta)
        self.seen += args.batch_size
        return loss.item()


def train(args: Args, vocabulary: int) -> None:
    """Trains until args.images and writes the averaged pipeline."""
    emoji, training = load_emoji(), Training(args, vocabulary)
    tokens = tokens_of(args.out / TOKENIZERS[0], emoji.captions)
    start, first, errors = time.monotonic(), training.seen, []
    while training.seen < args.images:
        errors.append(training.step(emoji.images, tokens))
        if training.seen % args.report_every < args.batch_size:
            spent = time.monotonic() - start
            left = spent / (training.seen - first) * (args.images - training.seen)
            print(
                f"{training.seen:8,} images  {spent:5.0f} s ({time.process_time():.0f} of the CPU), "
                f"{left:5.0f} s left  loss {sum(errors) / len(errors):.4f}",
                flush=True,
            )
            training.save()
            errors.clear()
    training.save()


def save_pipeline(model: Pipeline, args: Args) -> None:
    """The diffusers folder; weights as float16, half the size and far below their own noise."""
    half = copy.deepcopy(model).half()
    half.transformer.save_pretrained(args.out / "transformer")
    path = args.out / "transformer" / "config.json"  # of a prompt's tokens diffusers' has no word
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"text_tokens": TOKENS}, indent=2) + "\n"
    )
    for name, clip in zip(ENCODERS, half.text, strict=True):
        clip.save_pretrained(args.out / name)
    for path in args.out.glob("*/*.safetensors"):
        path.chmod(0o644)  # safetensors leaves new files to their owner alone
    FlowMatchEulerDiscreteScheduler(shift=args.shift).save_pretrained(args.out / "scheduler")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        **{name: ["transformers", "CLIPTextModelWithProjection"] for name in ENCODERS},
        **{name: ["transformers", "CLIPTokenizer"] for name in TOKENIZERS},
        "text_encoder_3": [None, None],
        "tokenizer_3": [None, None],
        "vae": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (args.out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main(args: Args) -> None:
    torch.set_num_threads(1)
    train(args, write_tokenizers(args))
    print(f"{time.process_time():.0f} CPU-seconds")


if __name__ == "__main__":
    main(tyro.cli(Args))
