"""What is left out where a network is frozen changes no number, and leaves nothing behind."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F

from sid_ray.denoisers.convolution import UnitWeight, convolve, freeze, weights_ready
from sid_ray.denoisers.edm2 import EDM2Denoiser
from sid_ray.denoisers.precondition import set_memory_format
from sid_ray.schedules import EDMSchedule
from sid_ray.types import Condition, Want
from tests.denoisers.test_recompute import FAMILIES
from tests.networks import some_draw

SCHEDULE = EDMSchedule()


def looked_at(network, dtype=None, real=None):
    """(prediction, gradient of the image) of a frozen network."""
    network.requires_grad_(False)
    network.compute_dtype = dtype
    draw = some_draw(3)
    x = draw.latents.clone().requires_grad_()
    cond = Condition(torch.eye(10)[:3], dropout_keys=draw.dropout_keys, real=real)
    found = network(x, SCHEDULE.level(torch.ones(3)), cond, Want.X0 | Want.LOGITS)
    (found.x0.square().sum() + found.logits.sum()).backward()
    return found.x0.detach(), found.logits.detach(), x.grad


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "size"), [(1, 8), (3, 8), (3, 1)])
def test_a_frozen_convolution_has_the_gradient_of_a_trained_one(kernel, size, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 5, size, size).contiguous(memory_format=layout).requires_grad_()
    weight, bias = torch.randn(7, 5, kernel, kernel), torch.randn(7)
    upstream = torch.randn(2, 7, size, size).contiguous(memory_format=layout)
    frozen = convolve(x, weight, bias)
    expected = F.conv2d(x, weight.requires_grad_(), bias, padding=kernel // 2)
    assert torch.equal(frozen, expected)
    (own,) = torch.autograd.grad(frozen, x, upstream)
    (theirs,) = torch.autograd.grad(expected, x, upstream)
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)
    assert own.is_contiguous(memory_format=layout)


def test_the_input_of_a_convolution_lives_on_only_where_its_weight_is_trained():
    weight = torch.randn(4, 4, 3, 3)
    for trained in (False, True):
        inside = torch.ones(1, 4, 8, 8, requires_grad=True) * 2
        out = convolve(inside, weight.requires_grad_(trained))
        kept = weakref.ref(inside.untyped_storage())
        del inside
        assert (kept() is not None) == trained, out.shape


@pytest.mark.parametrize("shape", [(3, 4, 3, 3), (5, 7)])
def test_unit_weights_are_equation_47_and_so_is_their_gradient(shape):
    torch.manual_seed(0)
    w = torch.randn(shape, dtype=torch.float64).requires_grad_()
    rms = w.detach().flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (len(shape) - 1))
    scale = 1 / math.sqrt(w[0].numel())
    out = UnitWeight.apply(w, scale, 1e-4, torch.float64)
    torch.testing.assert_close(out.detach(), w.detach() / (1e-4 + rms) * scale)
    assert torch.autograd.gradcheck(lambda w: UnitWeight.apply(w, scale, 1e-4, torch.float64), w)


def test_a_weight_of_zeros_has_a_finite_gradient():
    w = torch.zeros(2, 3, requires_grad=True)
    UnitWeight.apply(w, 1.0, 1e-4, torch.float32).sum().backward()
    torch.testing.assert_close(w.grad, torch.full((2, 3), 1e4))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_made_ready_are_the_same_to_the_bit_and_gone_afterwards(family, dtype):
    network = FAMILIES[family]()
    plain = looked_at(network, dtype)
    names, before = list(network.state_dict()), vars(network).keys()
    with pytest.raises(KeyError), weights_ready(network):
        assert same(looked_at(network, dtype), plain)
        assert list(network.state_dict()) == names
        raise KeyError
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    assert not same(looked_at(network, dtype), plain), "weights of before are still in use"
    assert vars(network).keys() == before


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_teacher_is_the_same_to_the_bit_and_no_larger(family, dtype):
    network = FAMILIES[family]()
    network.compute_dtype = dtype
    plain = looked_at(network, dtype)
    sizes = {p.data_ptr(): p.nbytes for p in network.parameters()}
    freeze(network)
    assert same(looked_at(network, dtype), plain)
    ready = {m.ready.data_ptr(): m.ready for m in network.modules() if getattr(m, "ready", None)
             is not None}  # fmt: skip
    left = {p.data_ptr(): p for p in network.parameters() if p.numel()} | ready
    total = sum(tensor.nbytes for tensor in left.values())
    assert total < 0.75 * sum(sizes.values()) if dtype else total == sum(sizes.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_in_memory_changes_rounding_alone(family):
    network = FAMILIES[family]()
    plain = looked_at(network)
    set_memory_format(network, "channels_last")
    for own, theirs in zip(looked_at(network), plain, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_real_images_beside_others_get_the_logits_of_a_pass_of_their_own(family):
    network, draw = FAMILIES[family](), some_draw(3)
    level, want = SCHEDULE.level(torch.ones(3)), Want.X0 | Want.LOGITS
    cond = Condition(torch.eye(10)[:3], dropout_keys=draw.dropout_keys)
    apart = network(draw.latents, level, cond, want)
    other = network(draw.noise, level, cond._replace(dropout_keys=~draw.dropout_keys), Want.LOGITS)
    both = network(draw.latents, level, cond._replace(real=draw.noise), want)
    torch.testing.assert_close(both.x0, apart.x0, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both.logits, apart.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both.real_logits, other.logits, rtol=1e-5, atol=1e-6)
    assert apart.real_logits is None and isinstance(network, EDM2Denoiser) == (family == "edm2")
