"""A network that makes images and is not trained, alike wherever its images are made or scored."""

from __future__ import annotations

import torch
from torch import nn

from sid_ray.config.auto import AUTO
from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.convolution import freeze
from sid_ray.denoisers.precondition import precision_beside, set_memory_format, set_precision
from sid_ray.denoisers.registry import family_of
from sid_ray.weights.description import ModelDescription


def scored_on(
    net: nn.Module,
    description: ModelDescription,
    config: DistillConfig,
    device: torch.device,
    fixed: bool = True,
) -> nn.Module:
    """The network itself, on its device.

    On a GPU in the precision that evaluation has there and in the order in memory of the config's
    run. Where it is ``fixed``, its weights are made ready for good there, and can be neither
    written again nor read. On a CPU nothing changes by a bit.
    """
    net = net.to(device)
    if device.type == "cuda":
        set_precision(net, precision_beside(config.training.precision, device))
        set_memory_format(net, memory_order(config, description))
        if fixed:
            freeze(net)
    return net


def memory_order(config: DistillConfig, description: ModelDescription) -> str:
    """How activations lie in the memory of a GPU: channels_last or contiguous."""
    order = config.resources.memory_format
    return family_of(description.family).memory_format if order == AUTO else order
