"""How the base of adapters is held: in the precision computed in no number changes; quantised."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

from sid_ray.denoisers.adapters import (
    Adapter,
    hold_as_base,
    laid_over,
    merged_weights,
    with_adapter,
)
from sid_ray.denoisers.quantised import QUANTISED, QuantisedLinear, quantise
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from tests.denoisers.tiny_adapters import FAMILIES, adapter_of, called, changed, tiny

CPU = torch.device("cpu")
HALVES = ("bfloat16", "float16")
HELD = [name for name in FAMILIES if "bfloat16" in family_of(name).bases]
QUANTISABLE = [name for name in FAMILIES if "4bit" in family_of(name).bases]


def held(family: str, precision: str, compute: str = "float32") -> nn.Module:
    net = tiny(family)
    net.compute_dtype = None if compute == "float32" else getattr(torch, compute)
    hold_as_base(net, precision, CPU)
    return net


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("family", HELD)
def test_held_in_the_precision_computed_in_no_number_changes(family, precision):
    base, plain = held(family, precision, precision), tiny(family)
    plain.compute_dtype = getattr(torch, precision)
    assert any(value.dtype == plain.compute_dtype for value in base.parameters())
    assert all(value.dtype == torch.float32 for value in base.parameters() if value.ndim < 2)
    trees = [changed(with_adapter(net, adapter_of(family)), 0.1) for net in (base, plain)]
    assert {value.dtype for value in trees[0].parameters()} == {torch.float32}
    found = []
    for net in (base, plain, *trees):
        if net in trees:
            net.requires_grad_(True)
        x, out = called(net, family)
        out.square().sum().backward()
        grads = [value.grad for value in net.parameters() if value.grad is not None]
        found.append([out, x.grad, *(grads if net in trees else [])])
    assert all(map(torch.equal, found[0], found[1]))
    assert len(found[2]) > 4 and all(map(torch.equal, found[2], found[3]))


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("family", HELD)
def test_held_in_less_than_computed_in_weights_are_cast_up(family, precision):
    """As a network whose weights were rounded once."""
    rounded = held(family, precision)
    plain = tiny(family)
    plain.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
    assert torch.equal(called(rounded, family)[1], called(plain, family)[1])
    assert not torch.equal(called(rounded, family)[1], called(tiny(family), family)[1])


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("family", QUANTISABLE)
def test_a_quantised_base_computes_as_the_weights_that_its_codes_stand_for(family, precision):
    base = held(family, precision)
    adapter = adapter_of(family)
    one, other = (changed(with_adapter(base, adapter), 0.1, seed) for seed in (1, 2))
    codes = {n: v for n, v in base.named_parameters() if not v.is_floating_point()}
    assert codes and all("block" in name for name in codes)
    mine = {value.data_ptr() for value in one.buffers()}
    assert {value.data_ptr() for value in codes.values()} <= mine
    for tree in (one, other):
        plain = tiny(family)
        plain.load_state_dict(merged_weights(tree))
        torch.testing.assert_close(
            called(tree, family)[1], called(plain, family)[1], rtol=1e-3, atol=1e-3
        )
    one.requires_grad_(True)
    found = []
    for recompute in (False, True):
        set_recompute(one, recompute)
        x, out = called(one, family)
        called(other, family)
        out.square().sum().backward()
        grads = [value.grad for value in one.parameters() if value.grad is not None]
        found.append([x.grad, *grads])
        one.zero_grad(set_to_none=True)
    assert len(found[0]) > 4 and all(map(torch.equal, *found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", QUANTISED)
def test_a_quantised_layer_is_near_its_weight_and_passes_its_gradient_on(precision, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(96, 40)
    weight = layer.weight.detach().clone()
    quantise(layer, precision)
    assert isinstance(layer, QuantisedLinear)
    made = layer.whole(torch.float32)
    step = weight.abs().amax(dim=1, keepdim=True) / 254 if precision == "8bit" else 0.153 / 96**0.5
    assert ((made - weight).abs() <= step * 1.001).all()
    x = torch.randn(3, 96).to(dtype).requires_grad_()
    out = layer(x)
    assert out.dtype == dtype
    out.sum().backward()
    torch.testing.assert_close(
        x.grad, layer.whole(dtype).sum(0).expand(3, -1), rtol=2e-2, atol=2e-2
    )
    if precision == "8bit":  # a code is a step of its row's scale
        assert layer.weight.abs().amax(dim=1).eq(127).all()


def test_rows_of_zeros_stay_zeros_in_8_bits():
    layer = nn.Linear(8, 2, bias=False)
    layer.weight.data[1] = 0
    quantise(layer, "8bit")
    assert layer.whole(torch.float32)[1].eq(0).all()


def test_a_copy_that_shares_its_memory_keeps_its_numbers():
    """The whole role beside a base: build.copied shares host memory until the device has it."""
    net = tiny("sd3")
    shared = {id(p): nn.Parameter(p.detach(), False) for p in net.parameters()}
    role = copy.deepcopy(net, shared)
    before = called(role, "sd3")[1]
    hold_as_base(net, "8bit", CPU)
    assert torch.equal(called(role, "sd3")[1], before)


@pytest.mark.parametrize("precision", ["bfloat16", "4bit"])
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*HELD}))
def test_what_cannot_be_held_so_is_refused(family, precision):
    with pytest.raises(UserError, match="Denoiser computes with its weights as they are"):
        hold_as_base(tiny(family), precision, CPU)


def test_4_bits_without_bitsandbytes_name_the_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name)
    )
    with pytest.raises(UserError, match=r"pip install 'sid_ray\[bitsandbytes\]'"):
        hold_as_base(tiny("sd3"), "4bit", CPU)


def test_a_description_lays_its_adapter_over_the_base_it_was_trained_over():
    said = adapter_of("sd3").to_json() | {"base": "8bit"}
    tree = changed(laid_over(tiny("sd3"), said), 0.1)
    trained = changed(with_adapter(held("sd3", "8bit"), Adapter.from_json(said)), 0.1)
    assert torch.equal(called(tree, "sd3")[1], called(trained, "sd3")[1])
