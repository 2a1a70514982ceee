"""What is left out where a network is frozen changes no number, and leaves nothing behind."""

import math
import os
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F

from sid_ray.denoisers.convolution import (
    UnitWeight,
    convolve,
    convolve_unit,
    freeze,
    weights_ready,
)
from sid_ray.denoisers.edm2 import EDM2Denoiser
from sid_ray.denoisers.precondition import set_memory_format
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.types import Condition, Want
from tests.denoisers.test_recompute import FAMILIES
from tests.support.networks import some_draw

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
    """To rounding: float32's unit weights may be scaled in another place."""
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    return True


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kernel", "size"), [(1, 8), (3, 8), (3, 1), (3, 32)])
def test_convolutions_are_torchs_and_so_are_their_gradients(kernel, size, dtype, trained, layout):
    torch.manual_seed(0)

    def some(*shape):
        return torch.randn(shape, dtype=dtype)

    x = some(2, 5, size, size).contiguous(memory_format=layout).requires_grad_()
    weight, bias = some(7, 5, kernel, kernel), some(7)
    upstream = some(2, 7, size, size).contiguous(memory_format=layout)
    inputs = (x, weight.requires_grad_(), bias.requires_grad_()) if trained else (x,)
    own = convolve(x, weight, bias)
    theirs = F.conv2d(x, weight, bias, padding=kernel // 2)
    torch.testing.assert_close(own, theirs)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (own, theirs)]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert gradients[0][0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("kernel", "size"), [(1, 2), (3, 2), (3, 16)])
def test_convolutions_of_unit_weights_are_the_same_scaled_before_or_behind(kernel, size, trained):
    """In float32 on a CPU, by which of output and weight is the smaller."""
    torch.manual_seed(0)
    x = torch.randn(1, 6, size, size).requires_grad_()
    weight = torch.randn(8, 6, kernel, kernel).requires_grad_(trained)
    upstream = torch.randn(1, 8, size, size)
    unit = weight / (1e-4 + weight.square().mean((1, 2, 3), keepdim=True).sqrt())
    expected = F.conv2d(x, unit / math.sqrt(weight[0].numel()), padding=kernel // 2)
    own, inputs = convolve_unit(x, weight, 1e-4), (x, weight) if trained else (x,)
    torch.testing.assert_close(own, expected)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (own, expected)]
    for found, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)


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
def test_weights_made_ready_change_nothing_and_are_gone_afterwards(family, dtype):
    network = FAMILIES[family]()
    plain = looked_at(network, dtype)
    names, before = list(network.state_dict()), vars(network).keys()
    with pytest.raises(KeyError), weights_ready(network):
        assert same(looked_at(network, dtype), plain)
        assert list(network.state_dict()) == names
        raise KeyError
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    with pytest.raises(AssertionError):
        same(looked_at(network, dtype), plain)  # weights of before would still be in use
    assert vars(network).keys() == before


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_teacher_is_the_same_and_no_larger(family, dtype):
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
    torch.testing.assert_close(both.x0, apart.x0, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(both.logits, apart.logits, rtol=1e-5, atol=5e-6)
    torch.testing.assert_close(both.real_logits, other.logits, rtol=1e-5, atol=5e-6)
    assert apart.real_logits is None and isinstance(network, EDM2Denoiser) == (family == "edm2")


@pytest.mark.parametrize(("value", "used"), [("0", "False False"), ("1", "True True")])
def test_one_switch_turns_all_code_for_cpus_off(value, used):
    code = (
        "import torch\n"
        "from sid_ray.denoisers.cpu_convolution import fits\n"
        "from sid_ray.training.allocator import keep_freed_memory\n"
        "print(fits(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)), keep_freed_memory())\n"
    )
    chosen = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")
    environment = {name: text for name, text in os.environ.items() if name not in chosen}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"SID_RAY_CPU_CODE": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == used.split()
