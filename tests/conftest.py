"""Shared pieces of the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

# Ray of the tests is their own: no cluster of the machine, no telemetry, quiet workers.
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True)
def one_thread():
    """The same threads whatever ran before: results of convolutions depend on it."""
    torch.set_num_threads(1)


class Reference:
    """A reference file: tensors by name, JSON metadata by name."""

    def __init__(self, name: str):
        with safe_open(REFERENCE / f"{name}.safetensors", framework="pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            self.metadata = file.metadata()

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with prefix, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def json(self, key: str):
        return json.loads(self.metadata[key])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in float64; 0 where both are the same."""
    if torch.equal(found, expected):
        return 0.0
    return float((found.double() - expected.double()).norm() / expected.double().norm())
