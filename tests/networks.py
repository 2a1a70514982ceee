"""Small networks for tests."""

from __future__ import annotations

import torch

from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.denoisers.spec import from_official, spec_of
from sid_ray.types import Batch

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


def official_network(kwargs: dict) -> torch.nn.Module:
    """A network from the arguments that an official file records."""
    family, arguments = from_official("EDMPrecond", kwargs)
    return spec_of(family).build(arguments)


def tiny_network(seed: int = 0) -> EDMDenoiser:
    """TINY with weights that are not near zero anywhere, so that every path counts."""
    torch.manual_seed(seed)
    network = EDMDenoiser(TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return network


class UniformLabels:
    """A source with ten even classes."""

    shape = (1, 8, 8)

    def batch(self, uniform: torch.Tensor) -> Batch:
        return Batch(torch.eye(10)[(uniform * 10).long()])
