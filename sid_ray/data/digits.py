"""scikit-learn's digits: 1,797 real 8x8 images of handwritten digits, shipped with the package.

Source: UCI ML "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998), CC BY
4.0.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LABEL_DIM = 10
SHAPE = (1, 8, 8)
FILE = "datasets/data/digits.csv.gz"  # in the package's folder; 64 pixels and the class a line


@cache
def load_digits() -> tuple[Tensor, Tensor]:
    """(images [1797, 1, 8, 8] float32 in [-1, 1], class labels [1797] int64)."""
    table = read_table()
    images = torch.from_numpy(table[:, :-1].reshape(-1, 8, 8)).float()[:, None] / 8 - 1  # of 0..16
    return images, torch.from_numpy(table[:, -1].copy()).long()


def read_table() -> NDArray[Any]:
    """[1797, 65] float64. The file itself: importing scikit-learn and SciPy takes 1.3 CPU seconds
    of every process that opens the digits.
    """
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package else []:
        if (Path(folder) / FILE).is_file():
            with gzip.open(Path(folder) / FILE, "rt") as lines:
                return np.loadtxt(lines, delimiter=",")
    from sklearn.datasets import load_digits as load  # a version that keeps it elsewhere

    digits = load()
    return np.column_stack([digits.data, digits.target])
