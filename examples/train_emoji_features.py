"""Trains the feature space ``emoji-cnn`` that ships with sid_ray, and writes its weights.

    python examples/train_emoji_features.py --out sid_ray/assets/emoji-cnn

A plain classifier of the 10 categories of 1,918 emoji; its 64 activations before the last layer,
and their mean and covariance over all real images, are what Frechet distances of emoji are measured
in. Printed at the end: how distances grow as real images are damaged, which is what a feature space
is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from sid_ray.data.emoji import load_emoji
from sid_ray.metrics.features import EmojiClassifier, FeatureSpace, save_feature_space
from sid_ray.metrics.frechet import FeatureStatistics


@dataclass
class Args:
    """Training of the emoji feature space."""

    out: Path = Path("sid_ray/assets/emoji-cnn")
    """Folder for features.safetensors."""
    seed: int = 0
    epochs: int = 60
    batch_size: int = 64
    lr: float = 1e-3


def varied(images: Tensor) -> Tensor:
    """Shifted by up to one pixel, and noisy: what a category does not depend on."""
    padded = F.pad(images, (1, 1, 1, 1), value=1.0)
    x, y = torch.randint(0, 3, (2,)).tolist()
    height, width = images.shape[2:]
    shifted = padded[:, :, y : y + height, x : x + width]
    return shifted + 0.1 * torch.randn_like(images)


def fit(args: Args, chosen: Tensor) -> EmojiClassifier:
    """A classifier trained on these emoji."""
    torch.manual_seed(args.seed)
    emoji, net = load_emoji(), EmojiClassifier()
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.05)
    for _ in range(args.epochs):
        for batch in chosen[torch.randperm(len(chosen))].split(args.batch_size):
            logits = net(varied(emoji.images[batch]))
            loss = F.cross_entropy(logits, emoji.categories[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def damages(images: Tensor) -> dict[str, Tensor]:
    """The same images, worse and worse in several ways."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    small = F.avg_pool2d(images, 2)
    return {
        "real": images,
        "noise 0.1": images + 0.1 * noise,
        "noise 0.3": images + 0.3 * noise,
        "noise 1": images + noise,
        "half the resolution": F.interpolate(small, scale_factor=2.0),
        "a quarter": F.interpolate(F.avg_pool2d(small, 2), scale_factor=4.0),
        "half of the images": images[::2],
        "100 images": images[:100],
        "one image": images[:1].repeat(500, 1, 1, 1),
    }


def main(args: Args) -> None:
    torch.set_num_threads(1)
    emoji = load_emoji()
    held_out = torch.arange(len(emoji.images)) % 5 == 0
    net = fit(args, (~held_out).nonzero().flatten())
    hits = net(emoji.images[held_out]).argmax(1) == emoji.categories[held_out]
    print(f"held-out accuracy {hits.float().mean():.3f}, of 10 categories")
    net = fit(args, torch.arange(len(emoji.images)))
    stats = FeatureStatistics.of(net.features(emoji.images).double().numpy())
    space = FeatureSpace("emoji-cnn", net, stats.mean, stats.covariance)
    print(f"accuracy on all images {space.class_accuracy(emoji.images, emoji.categories):.3f}")
    for name, images in damages(emoji.images).items():
        print(f"{name:20} {space.frechet_distance(images):10.3f}")
    save_feature_space(args.out, "emoji-cnn", net, emoji.images)


if __name__ == "__main__":
    main(tyro.cli(Args))
