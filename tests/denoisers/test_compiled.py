"""Compiled networks: the same numbers, whole graphs, names and copies as without."""

import copy
import logging
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import torch._dynamo
from sid_ray.denoisers import compiled
from sid_ray.denoisers.compiled import CACHE_VARIABLE, blocks, keep_compiled, set_compile
from sid_ray.denoisers.dropout import keep_mask
from sid_ray.denoisers.edm import EDMDenoiser
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.schedules import EDMSchedule
from sid_ray.types import Condition, Want
from tests.conftest import relative_error
from tests.networks import TINY, some_draw, tiny_edm2, tiny_network

ROUNDING = 2e-5


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


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Graphs of other tests, and limits that set_compile raises, are not this test's."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # slow, and long
    with torch._dynamo.config.patch():
        yield
    torch._dynamo.reset()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def outcome(network: nn.Module, trained: bool, keys: Tensor | None, want: Want) -> list[Tensor]:
    """Outputs and gradients with respect to the image and, where trained, the weights."""
    network.requires_grad_(trained)
    x = some_draw(3).latents.clone().requires_grad_()
    cond = Condition(torch.eye(10)[:3], dropout_keys=keys)
    found = network(x, EDMSchedule().level(torch.ones(3)), cond, want)
    values = [value for value in found if value is not None]
    sum(value.square().sum() for value in values).backward()
    weights = [p.grad for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    return [x.grad, *(value.detach() for value in values), *weights]


def cases() -> list[tuple[bool, Tensor | None, Want]]:
    """What one network is asked for in a run: each toggle on and off again."""
    keys = some_draw(3).dropout_keys
    both = Want.X0 | Want.LOGITS
    return [(True, keys, Want.X0), (False, None, both), (True, keys, Want.X0)]


def outcomes(network: nn.Module) -> list[list[Tensor]]:
    found = [outcome(network, *case) for case in cases()]
    with torch.no_grad():
        level, x = EDMSchedule().level(torch.ones(3)), some_draw(3).latents
        found.append([network(x, level, Condition(torch.eye(10)[:3])).x0])
    return found


@pytest.mark.parametrize("mode", ["default", "cudagraphs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_have_no_breaks_and_change_no_number(family, mode):
    """Traced and run by dynamo without a compiler: every operation stays what it was."""
    network = FAMILIES[family]()
    expected = outcomes(network)
    set_compile(network, mode, backend="eager")
    found = outcomes(network)
    assert graphs() > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs)
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("mode", ["default", "cudagraphs"])
def test_blocks_computed_again_are_compiled_too(mode):
    network = tiny_network()
    set_recompute(network, True)
    expected = outcomes(network)
    set_compile(network, mode, backend="aot_eager")
    for ours, theirs in zip(outcomes(network), expected, strict=True):
        errors = map(relative_error, ours, theirs)
        assert max(errors) < ROUNDING
    assert graphs() > 0


def test_equal_blocks_and_networks_share_their_code():
    first = tiny_network()
    set_compile(first, "default", backend="eager")
    outcomes(first)
    made = graphs()
    second = copy.deepcopy(first)
    set_compile(second, "default", backend="eager")
    outcomes(second)
    assert graphs() == made
    variants = len(cases()) - 1 + 1  # the third is the first again; and without gradients
    assert made < variants * len(list(blocks(first)))


def test_names_and_copies_are_those_of_the_network():
    plain, network = tiny_edm2(), tiny_edm2()
    set_compile(network, "default", backend="eager")
    assert list(network.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in network.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    expected = outcomes(plain)
    for ours, theirs in zip(outcomes(copy.deepcopy(network)), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert graphs() == 0, "a copy is not compiled"


def test_sites_as_tensors_give_the_masks_of_sites_as_numbers():
    keys = some_draw(3).dropout_keys
    for site in (0, 1, 57, 2**40):
        mask = keep_mask(keys, torch.tensor(site), 0.3, 100)
        assert torch.equal(mask, keep_mask(keys, site, 0.3, 100))


def test_more_variants_than_there_is_room_for_raise(monkeypatch):
    monkeypatch.setattr(compiled, "VARIANTS", 1)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    network = tiny_network()
    set_compile(network, "default", backend="eager")
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        outcomes(network)


def test_off_is_off_and_other_words_are_refused():
    network = tiny_network()
    set_compile(network, "off")
    outcomes(network)
    assert graphs() == 0
    with pytest.raises(ValueError, match="found 'fast'"):
        set_compile(network, "fast")


def test_a_cache_folder_of_ones_own_stays(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    keep_compiled(tmp_path)
    assert os.environ[CACHE_VARIABLE] == str(tmp_path)
    keep_compiled(tmp_path / "other")
    assert os.environ[CACHE_VARIABLE] == str(tmp_path)
    monkeypatch.delenv(CACHE_VARIABLE)
