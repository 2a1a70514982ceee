"""Half precision for networks that other libraries build: their layers compute in their input's.

Parameters keep their own precision and are cast at each call, as in this project's networks
(edm_layers.py). In float32 the layers are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sid_ray.denoisers.convolution import Ready


class CastingLayer(Ready):
    """A layer with a weight and perhaps a bias, both cast to the input's precision.

    Beside it, in each class below, stands torch's own layer, which declares both otherwise.
    """

    bias: Tensor | None
    in_body = True  # False beside it: what computes in float32 whatever the body's precision is

    def made_ready(self, dtype: torch.dtype | None) -> Tensor:
        assert self.weight is not None
        if not self.in_body:
            dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return self.weight.detach().to(dtype or self.weight.dtype)

    def cast(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) for x."""
        weight = self.weight if self.ready is None else self.ready
        assert weight is not None
        return weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)


class CastingLinear(CastingLayer, nn.Linear):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.cast(x))


class CastingConv2d(CastingLayer, nn.Conv2d):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.cast(x))


class CastingGroupNorm(CastingLayer, nn.GroupNorm):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, *self.cast(x), self.eps)


class CastingLayerNorm(CastingLayer, nn.LayerNorm):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, *self.cast(x), self.eps)


KINDS: dict[type[nn.Module], type[CastingLayer]] = {
    nn.Linear: CastingLinear,
    nn.Conv2d: CastingConv2d,
    nn.GroupNorm: CastingGroupNorm,
    nn.LayerNorm: CastingLayerNorm,
}


def make_casting(module: nn.Module) -> None:
    """Changes every layer of these kinds in a network, in place: names and parameters stay."""
    for layer in module.modules():
        kind = KINDS.get(type(layer))
        if kind is not None:
            # Another class with the same attributes: hooks, names and what libraries ask of a
            # torch.nn.Linear (adapters, for one) stay as they are.
            layer.__class__ = kind


def keep_beside_body(module: nn.Module) -> None:
    """Has casting layers compute as precisely as their input, made ready or not, in place."""
    for layer in module.modules():
        if isinstance(layer, CastingLayer):
            layer.in_body = False


def product_layers(module: nn.Module) -> Iterator[nn.Module]:
    """torch's linear layers and convolutions in a network."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield layer


def not_casting(module: nn.Module) -> list[str]:
    """Names of layers whose own parameters are not cast."""
    return [
        name
        for name, layer in module.named_modules()
        if not isinstance(layer, CastingLayer) and any(True for _ in layer.parameters(False))
    ]
