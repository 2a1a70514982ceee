"""A layer of this project's own networks whose weight has a low-rank change (adapters.py).

    W' = W + alpha / r * B A        made in each pass, in float32 at least

What the layer does with its weight it does with W': EDM2's layers normalise it, so that an adapted
layer preserves magnitudes as its base does, and a merged one computes the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sid_ray.denoisers.adapter_names import OWN


class Factor(nn.Module):
    """A or B, called as PEFT calls them."""

    def __init__(self, *shape: int, like: Tensor):
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype, device=like.device))


class LowRank(nn.Module):
    """What a layer's class is low_rank_class with: ``weight`` is made of the base's, A and B."""

    base_weight: Tensor
    lora_A: nn.ModuleDict  # noqa: N815
    lora_B: nn.ModuleDict  # noqa: N815
    lora_scale: float

    @property
    def stored(self) -> Tensor:
        return self.base_weight

    @property
    def weight(self) -> Tensor:
        wide = torch.promote_types(self.base_weight.dtype, torch.float32)
        return self.base_weight.to(wide) + self.change(wide)

    def change(self, dtype: torch.dtype) -> Tensor:
        """alpha / r * B A in the weight's shape."""
        down: Any = self.lora_A[OWN]
        up: Any = self.lora_B[OWN]
        product = up.weight.to(dtype).flatten(1) @ down.weight.to(dtype).flatten(1)
        return product.reshape(self.base_weight.shape) * self.lora_scale


def fits_low_rank(layer: nn.Module) -> bool:
    """Whether it is a layer of this project's own with a matrix or kernel as its weight."""
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
        return False
    weight = layer._parameters.get("weight")
    return weight is not None and weight.ndim in (2, 4)


def add_low_rank(layer: nn.Module, rank: int, alpha: float) -> None:
    """Gives a layer a change of rank ``rank`` that is 0, in place."""
    weight = layer._parameters.pop("weight")
    assert weight is not None
    ones = [1] * (weight.ndim - 2)
    kind: Any = type(layer)
    layer.__class__ = low_rank_class(kind)
    layer.register_parameter("base_weight", weight)
    layer.lora_A = nn.ModuleDict({OWN: Factor(rank, *weight.shape[1:], like=weight)})
    layer.lora_B = nn.ModuleDict({OWN: Factor(weight.shape[0], rank, *ones, like=weight)})
    layer.lora_scale = alpha / rank  # type: ignore[assignment]


@cache
def low_rank_class(kind: Any) -> type[nn.Module]:
    """A layer's class whose weight is LowRank's."""
    return type(f"LowRank{kind.__name__}", (LowRank, kind), {"__module__": kind.__module__})
