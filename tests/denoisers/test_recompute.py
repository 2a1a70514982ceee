"""Blocks computed again in the backward pass: the same numbers to the bit, less memory."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sid_ray.denoisers.edm import EDMDenoiser
from sid_ray.denoisers.edm2 import EDM2Denoiser
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.objectives.sida import SiDA
from sid_ray.types import Batch, Condition, Networks, Want
from tests.support.networks import TINY, TINY_EDM2, some_draw, tiny_edm2, tiny_network

SCHEDULE = EDMSchedule()


def adm() -> nn.Module:
    torch.manual_seed(0)
    net = replace(TINY, model_type="DhariwalUNet", model_channels=64, channel_mult_emb=4)
    network = EDMDenoiser(net)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    return network


FAMILIES = {"edm": tiny_network, "adm": adm, "edm2": tiny_edm2}


def batch(count: int) -> Batch:
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(torch.eye(10)[torch.arange(count)], images)


def gradients(network: nn.Module, keys: Tensor | None, dtype: torch.dtype | None) -> list[Tensor]:
    """Of image and weights, through both outputs."""
    network.compute_dtype = dtype
    draw = some_draw(3)
    x = draw.latents.clone().requires_grad_()
    cond = Condition(torch.eye(10)[:3], dropout_keys=keys)
    found = network(x, SCHEDULE.level(torch.ones(3)), cond, Want.X0 | Want.LOGITS)
    (found.x0.square().sum() + found.logits.sum()).backward()
    weights = [p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    return [x.grad, found.x0.detach(), *weights]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_gradient_is_the_same_to_the_bit(family, dropout, dtype):
    network, keys = FAMILIES[family](), some_draw(3).dropout_keys if dropout else None
    kept = gradients(network, keys, dtype)
    set_recompute(network, True)
    again = gradients(network, keys, dtype)
    assert len(kept) == len(again) > 20
    assert all(map(torch.equal, kept, again))


def calls_of_blocks(network: nn.Module) -> list[str]:
    calls: list[str] = []
    for name, layer in network.named_modules():
        if hasattr(layer, "recompute"):
            layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_is_computed_twice_where_there_is_a_gradient_and_once_else(family):
    network = FAMILIES[family]().requires_grad_(False)
    set_recompute(network, True)
    calls = calls_of_blocks(network)
    level, cond = SCHEDULE.level(torch.ones(2)), Condition(torch.eye(10)[:2])
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        network(x, level, cond)
    once = sorted(calls)
    assert len(once) == len(set(once)) == sum(hasattr(m, "recompute") for m in network.modules())
    calls.clear()
    network(x.requires_grad_(), level, cond).x0.sum().backward()
    assert sorted(calls) == sorted(once * 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_generator_loss_through_frozen_scores_is_the_same_to_the_bit(family):
    """Teacher and fake score are differentiated with respect to the image alone."""
    objective = SiDA(SCHEDULE, logvar=family == "edm2")
    found = []
    for on in (False, True):
        networks = [FAMILIES[family]() for _ in range(3)]
        for network in networks:
            set_recompute(network, on)
        teacher, fake_score, generator = networks
        teacher.requires_grad_(False)
        fake_score.requires_grad_(False)
        with torch.no_grad():  # else teacher and fake score agree
            for parameter in fake_score.parameters():
                parameter.mul_(1.1)
        loss = objective.generator_loss(Networks(*networks), batch(4), some_draw(4))
        loss.total.backward()
        assert all(p.grad is None for net in (teacher, fake_score) for p in net.parameters())
        found.append([p.grad for p in generator.parameters() if p.grad is not None])
    assert found[0] and any(bool(gradient.any()) for gradient in found[0])
    assert all(map(torch.equal, *found))


def saved_bytes(network: nn.Module, channels: int, side: int) -> int:
    """What a forward pass keeps for the backward pass, weights left out, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(4, channels, side, side, requires_grad=True)
    keys, labels = some_draw(4).dropout_keys, torch.eye(10)[:4]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(x, SCHEDULE.level(torch.ones(4)), Condition(labels, dropout_keys=keys)).x0
    del out
    return sum(kept.values())


def wider(family: str) -> nn.Module:
    """Two resolutions of 32 pixels with attention at the lower: as published, but narrow."""
    size = {
        "img_resolution": 32,
        "channel_mult": (1, 2),
        "num_blocks": 2,
        "attn_resolutions": (16,),
    }
    if family == "edm":
        return EDMDenoiser(replace(TINY, model_channels=32, **size))
    return EDM2Denoiser(replace(TINY_EDM2, model_channels=32, **size))


@pytest.mark.parametrize(("family", "limit"), [("edm", 0.25), ("edm2", 0.25)])
def test_what_is_kept_for_the_backward_pass_is_a_part_of_it(family, limit):
    network = wider(family)
    kept = saved_bytes(network, 1, 32)
    set_recompute(network, True)
    share = saved_bytes(network, 1, 32) / kept
    print(f"{family}: {kept / 2**20:.1f} MiB, {share:.3f} of it with checkpointing")
    assert share < limit
