"""scikit-learn's digits: 1,797 real 8x8 images of handwritten digits, shipped with the package.

Source: UCI ML "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998), CC BY
4.0.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LABEL_DIM = 10
SHAPE = (1, 8, 8)


@cache
def load_digits() -> tuple[Tensor, Tensor]:
    """(images [1797, 1, 8, 8] float32 in [-1, 1], class labels [1797] int64)."""
    from sklearn.datasets import load_digits as load

    digits = load()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1  # 0..16 -> -1..1
    return images, torch.from_numpy(digits.target).long()
