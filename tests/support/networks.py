"""Small networks and data sets for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network
from sid_ray.denoisers.registry import family_of, from_official
from sid_ray.types import Batch, Condition, Draw, Level, Pick, Prediction, Want

TINY = EDMNetwork(
    img_resolution=8,
    img_channels=1,
    label_dim=10,
    model_channels=16,
    channel_mult=(1, 2),
    channel_mult_emb=2,
    num_blocks=1,
    attn_resolutions=(4,),
    dropout=0.1,
)
TINY_EDM2 = EDM2Network(
    img_resolution=8,
    img_channels=1,
    label_dim=10,
    model_channels=16,
    channel_mult=(1, 1),
    num_blocks=1,
    attn_resolutions=(),
    channels_per_head=16,
    logvar_channels=16,
    dropout=0.1,
)


def official_network(kwargs: Mapping[str, Any], class_name: str = "EDMPrecond") -> torch.nn.Module:
    """A network from the class and arguments that an official file records."""
    family, arguments = from_official(class_name, kwargs)
    return family_of(family).build(arguments)


def tiny_network(seed: int = 0, augment_dim: int = 0) -> EDMDenoiser:
    """TINY with weights that are not near zero anywhere, so that every path counts."""
    torch.manual_seed(seed)
    network = EDMDenoiser(replace(TINY, augment_dim=augment_dim))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return network


def tiny_edm2(seed: int = 0) -> EDM2Denoiser:
    """TINY_EDM2 with gains that are not zero."""
    torch.manual_seed(seed)
    network = EDM2Denoiser(TINY_EDM2)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 0:
                parameter.copy_(0.35 + 0.1 * torch.randn(()))
    return network


class Fixed:
    """A generator whose images are given: the losses are tested apart from any generator."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __call__(
        self, x_t: torch.Tensor, level: Level, cond: Condition, want: Want = Want.X0
    ) -> Prediction:
        return Prediction(x0=self.images)


class UniformLabels:
    """A source with ten even classes."""

    shape = (1, 8, 8)

    def batch(self, pick: Pick) -> Batch:
        return Batch(torch.eye(10)[(pick.uniform * 10).long()])


class LabelledNoise(UniformLabels):
    """Ten even classes of a hundred fixed images."""

    def __init__(self) -> None:
        self.images = torch.randn(100, *self.shape, generator=torch.Generator().manual_seed(0))

    def batch(self, pick: Pick) -> Batch:
        return Batch(super().batch(pick).labels, self.images[(pick.uniform * 100).long()])


def widened(values):
    """A Draw or a Batch with the same numbers in float64."""

    def wide(value):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if floating else value

    return type(values)(*map(wide, values))


def some_draw(count: int, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)) -> Draw:
    """Uniform times; any numbers will do for the others."""
    rng = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, count, *shape, generator=rng).unbind(0)
    keys = torch.randint(-(2**62), 2**62, (count,), generator=rng)
    return Draw(latents, noise, torch.rand(count, generator=rng), keys)
