"""How a network is run that is scored; no GPU is here, so a network that is moved to one stays."""

import copy

import torch
from torch import nn

from sid_ray.config.distill_config import replace
from sid_ray.evaluation.samplers import Inputs, generator_sampler
from sid_ray.evaluation.scored_network import scored_on
from sid_ray.recipes.registry import recipe
from sid_ray.training.assemble import schedule_of
from sid_ray.types import Condition
from sid_ray.weights.description import ModelDescription
from tests.support.networks import TINY_EDM2, tiny_edm2

DESCRIPTION = ModelDescription("edm2", TINY_EDM2.to_json())
CONFIG = replace(recipe("digits-sid"), training__precision="bfloat16")


def made(net: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    x, labels = torch.randn(2, 1, 8, 8), torch.eye(10)[:2]
    with torch.no_grad():
        return generator_sampler(net, schedule_of(CONFIG), 1)(Inputs(x, Condition(labels)))


def network() -> nn.Module:
    return tiny_edm2(seed=0).eval().requires_grad_(False)


def test_on_a_gpu_it_computes_as_the_run_does_and_its_weights_are_ready(monkeypatch):
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    written = network()
    written.compute_dtype, written.memory_format = torch.bfloat16, torch.channels_last
    expected = made(copy.deepcopy(written))
    again = scored_on(network(), DESCRIPTION, CONFIG, torch.device("cuda"), fixed=False)
    fixed = scored_on(network(), DESCRIPTION, CONFIG, torch.device("cuda"))
    for net in (again, fixed):
        assert net.memory_format == torch.channels_last
        assert torch.equal(made(net), expected)
    assert all(p.numel() for p in again.parameters())
    assert sum(p.numel() for p in fixed.parameters()) < sum(p.numel() for p in again.parameters())
    assert not torch.equal(made(network()), expected)


def test_on_a_cpu_it_is_as_it_was():
    net = scored_on(network(), DESCRIPTION, CONFIG, torch.device("cpu"))
    assert net.state_dict().keys() == network().state_dict().keys()
    assert all(p.numel() for p in net.parameters())
    assert torch.equal(made(net), made(network()))
