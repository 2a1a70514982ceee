"""Floating-point operations of an iteration: the bill of the algorithm, counted without computing.

The networks are laid out on torch's meta device and the losses' own forward and backward passes run
on tensors without data, while torch's counter adds up matrix products, convolutions and attention.
What is computed again to save memory is not in it, nor are norms, activations and the optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sid_ray.config.distill_config import DistillConfig
from sid_ray.denoisers.registry import family_of
from sid_ray.planning.memory import FAKE_SCORE, GENERATOR
from sid_ray.planning.spec_networks import spec_network, spec_networks
from sid_ray.planning.trace_memory import inputs, trace_phase, trained_alone
from sid_ray.training.assemble import network_of, objective_of
from sid_ray.types import Networks
from sid_ray.weights.description import ModelDescription


def iteration_flops(config: DistillConfig, description: ModelDescription) -> int:
    """FLOP of both phases for one image: generator, fake score and teacher, forward and backward.

    ``description`` is the teacher's. Of several steps an image, the last one is the one trained.
    Raises UserError where the description makes no network.
    """
    description = network_of(config, description)
    nets = spec_networks(config, description, "meta", whole_teacher=False)
    total = 0
    for phase, trained in ((FAKE_SCORE, nets[1]), (GENERATOR, nets[2])):
        with trained_alone(trained), FlopCounterMode(display=False) as counter:
            trace_phase(config, description, nets, phase, 1)
        total += counter.get_total_flops()
    return total


def forward_flops(config: DistillConfig, description: ModelDescription) -> int:
    """FLOP of the network for one image: what the fake-score phase's generator spends."""
    description = network_of(config, description)
    net = spec_network(config, description, "meta")
    text = family_of(description.family).text_shape(description.network)
    objective: Any = objective_of(config, torch.zeros(text, device="meta") if text else None)
    device = torch.device("meta")
    draw, batch = inputs(config, description, 1, objective.draw_spec, device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        objective.generate(Networks(net, net, net), batch, draw, dropout=False)
    return counter.get_total_flops()
