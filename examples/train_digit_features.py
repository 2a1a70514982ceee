"""Trains the feature space ``digits-cnn`` that ships with sid_ray, and writes its weights.

    python examples/train_digit_features.py --out sid_ray/assets/digits-cnn

A plain classifier on scikit-learn's 1,797 digits; its 64 penultimate activations, and their mean
and covariance over all 1,797 real images, are what Frechet distances of digits are measured in.
One CPU minute. The shipped weights came from seed 0; another seed is another feature space.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

from sid_ray.data.digits import load_digits
from sid_ray.metrics.features import DigitsClassifier, save_feature_space
from sid_ray.metrics.frechet import FeatureStatistics, frechet_distance


@dataclass
class Args:
    """Training of the digits feature space."""

    out: Path = Path("sid_ray/assets/digits-cnn")
    """Folder for features.safetensors."""
    seed: int = 0
    epochs: int = 40
    batch_size: int = 64
    lr: float = 1e-3


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    images, labels = load_digits()
    held_out = torch.arange(len(images)) % 5 == 0
    net = DigitsClassifier()
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    train = (~held_out).nonzero().flatten()
    for _ in range(args.epochs):
        for chosen in train[torch.randperm(len(train))].split(args.batch_size):
            noisy = images[chosen] + 0.1 * torch.randn_like(images[chosen])
            loss = F.cross_entropy(net(noisy), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval().requires_grad_(False)
    hits = (net(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
    halves = [FeatureStatistics.of(net.features(images[i::2]).double().numpy()) for i in (0, 1)]
    gap = frechet_distance(
        halves[0].mean, halves[0].covariance, halves[1].mean, halves[1].covariance
    )
    print(f"held-out accuracy {hits:.4f}; even images against odd ones: distance {gap:.3f}")
    save_feature_space(args.out, "digits-cnn", net, images)


if __name__ == "__main__":
    main(tyro.cli(Args))
