"""The made-up features that tests/reference/metrics.json holds the numbers of.

The numbers came from torch-fidelity and torchmetrics, which are not needed to run the tests; the
JSON says with which versions, which functions and which arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, CLASSES = 24, 10


def made_up() -> dict[str, Tensor]:
    """Two sets of correlated features, float32 values as float64, and the logits of a classifier.

    real [900, 24], made [700, 24], logits [1003, 10]; few [16, 24] has fewer samples than
    features.
    """
    rng = torch.Generator().manual_seed(20260507)
    mixing = torch.randn(WIDTH, WIDTH, generator=rng) / WIDTH**0.5
    real = torch.randn(900, WIDTH, generator=rng) @ mixing + 0.3
    other = mixing + 0.15 * torch.randn(WIDTH, WIDTH, generator=rng)
    made = torch.randn(700, WIDTH, generator=rng) @ other + 0.4
    logits = 2 * torch.randn(1003, CLASSES, generator=rng)
    found = {"real": real, "made": made, "logits": logits, "few": made[:16]}
    return {name: values.double() for name, values in found.items()}
