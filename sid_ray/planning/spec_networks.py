"""The networks of a run without their numbers.

They lie on torch's meta device, or on another with random numbers, to compare. Under adapters the
teacher is the base, whose tensors all three share.
"""

from __future__ import annotations

import torch
from torch import nn

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.adapters import hold_as_base, with_adapter
from sid_ray.denoisers.convolution import freeze
from sid_ray.denoisers.precondition import set_precision
from sid_ray.denoisers.quantised import QUANTISED
from sid_ray.denoisers.registry import family_of
from sid_ray.planning.memory import TRAINED
from sid_ray.training.adapter_settings import base_precision, run_adapter
from sid_ray.training.assemble import adam_of
from sid_ray.weights.folder import ModelDescription
from sid_ray.weights.networks import layout


def spec_networks(
    config: DistillConfig,
    description: ModelDescription,
    device: torch.device | str,
    whole_teacher: bool = True,
) -> list[nn.Module]:
    """Teacher, fake score and generator as a run has them, with no numbers or with random ones.

    Of a teacher that is not whole, parts are made ready as they are gathered.
    """
    teacher = spec_network(config, description, device)
    adapter = run_adapter(config, description.family)
    if adapter is not None:
        hold_as_base(teacher, plain_base(config, description.family), torch.device(device))
    elif whole_teacher:
        freeze(teacher)

    def role(name: str) -> nn.Module:
        if adapter is None or not config.adapter.of(name):
            net = spec_network(config, description, device)
            return net.to(torch.bfloat16) if adam_of(config, name).half_weights else net
        with torch.device(device):
            return with_adapter(teacher, adapter)

    return [teacher, *map(role, TRAINED)]


def spec_network(
    config: DistillConfig, description: ModelDescription, device: torch.device | str
) -> nn.Module:
    """A frozen network with no numbers, or with random ones."""
    if str(device) == "meta":
        net = layout(description, "the teacher")
    else:
        net = family_of(description.family).build(description.network).to(device)
    set_precision(net, config.training.precision)
    return net.requires_grad_(False)


def plain_base(config: DistillConfig, family: str) -> str:
    """What a base of adapters is traced in: in place of quantised weights those they become."""
    held = base_precision(config, family)
    return config.training.precision if held in QUANTISED else held
