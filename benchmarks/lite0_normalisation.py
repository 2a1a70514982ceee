"""Which normalisation of bytes the weights of EfficientNet-Lite0 were trained with: one table.

    python -m benchmarks.lite0_normalisation

A batch norm keeps the mean and variance that its input had in training. So both are compared with
those of random crops (8 to 100% of the area, as in training) of the photos that scikit-learn and
matplotlib ship, under each normalisation: (mean - running mean) / running deviation, its root mean
square over channels, and variance / running variance, the median over channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import sklearn
import torch
from PIL import Image
from torch import Tensor, nn

from sid_ray.metrics.lite0 import SIZE, load_lite0, resized_images

IMAGENET = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255
NORMALISATIONS = {
    "ImageNet's": IMAGENET,
    "(x - 127) / 128": (torch.full((3,), 127.0), torch.full((3,), 128.0)),
}
PHOTOS = (
    Path(sklearn.__file__).parent / "datasets/images/china.jpg",
    Path(sklearn.__file__).parent / "datasets/images/flower.jpg",
    Path(matplotlib.__file__).parent / "mpl-data/sample_data/grace_hopper.jpg",
)
CROPS = 32  # of each photo


def photo(path: Path) -> Tensor:
    """Bytes [3, H, W]."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def top_square(image: Tensor) -> Tensor:
    """The largest square at the top, in the middle of the width: [1, 3, SIZE, SIZE]."""
    side = min(image.shape[1:])
    left = (image.shape[2] - side) // 2
    return resized_images(image[None, :, :side, left : left + side], SIZE)


def crops(image: Tensor, random: np.random.Generator) -> Iterator[Tensor]:
    """CROPS random parts [1, 3, SIZE, SIZE], with sides of 3:4 to 4:3."""
    height, width = image.shape[1:]
    made = 0
    while made < CROPS:
        area = random.uniform(0.08, 1) * height * width
        shape = math.exp(random.uniform(-1, 1) * math.log(4 / 3))
        high, wide = int(math.sqrt(area / shape)), int(math.sqrt(area * shape))
        if high <= height and wide <= width:
            top, left = random.integers(height - high + 1), random.integers(width - wide + 1)
            yield resized_images(image[None, :, top : top + high, left : left + wide], SIZE)
            made += 1


def batch_norms(network: nn.Module, images: Tensor) -> list[tuple[float, float]]:
    """Of each batch norm in order: how far means are off, and the ratio of variances."""
    found = []

    def look(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        off = (mean - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        ratio = (variance / (norm.running_var + norm.eps)).median()
        found.append((float(off.square().mean().sqrt()), float(ratio)))

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(look) for norm in norms]
    network(images)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def main() -> None:
    network = load_lite0("lite0", torch.device("cpu")).network
    photos = {path.name: photo(path) for path in PHOTOS}
    random = np.random.default_rng(0)
    parts = torch.cat([part for image in photos.values() for part in crops(image, random)])
    stem = network._conv_stem.weight.sum((2, 3))
    colours = torch.linalg.lstsq(stem, network._bn0.running_mean[:, None]).solution[:, 0]
    print("mean colour in training, by the first batch norm:", numbers(colours))
    for name, (mean, deviation) in NORMALISATIONS.items():
        print(
            f"\n{name}\nImageNet's mean colour is then: {numbers((IMAGENET[0] - mean) / deviation)}"
        )
        mean, deviation = mean[:, None, None], deviation[:, None, None]
        for file, image in photos.items():
            chances = network((top_square(image) - mean) / deviation)[0].softmax(0)
            best, entropy = chances.topk(2), -(chances * chances.log()).sum()
            classes = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            shown = ", ".join(f"{number} ({chance:.2f})" for number, chance in classes)
            print(f"  {file:17} classes {shown}; entropy {entropy:.2f} nats")
        found = np.array(batch_norms(network, (parts - mean) / deviation))
        for what, rows in (("first", found[:1]), ("first seven", found[:7]), ("all", found)):
            off, ratio = rows.mean(0)
            print(f"  {what + ' batch norms':24} means off by {off:.2f}, variances x {ratio:.2f}")


def numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())


if __name__ == "__main__":
    main()
