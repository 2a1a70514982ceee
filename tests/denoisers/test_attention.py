"""One switch for the attention kernel, and the layout of the published weights."""

import importlib
import sys
import types

import pytest
import torch

from sid_ray.denoisers import attention, xformers_package
from sid_ray.denoisers.attention import attend, merge_heads, set_attention, split_heads
from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network
from sid_ray.denoisers.precondition import set_precision
from sid_ray.errors import UserError
from tests.denoisers.official import Official, fill, relative_error

SIZES = {"img_resolution": 16, "img_channels": 3, "model_channels": 64, "channel_mult": (1, 2)}
NETWORKS = {
    "song": lambda: EDMDenoiser(EDMNetwork(**SIZES, num_blocks=1)),
    "adm": lambda: EDMDenoiser(EDMNetwork(**SIZES, num_blocks=1, model_type="DhariwalUNet")),
    "edm2": lambda: EDM2Denoiser(EDM2Network(**SIZES, num_blocks=1)),
}


def reference(q, k, v):
    """Attention as the official EDM code writes it: k scaled, product and softmax in float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    k = k / k.shape[-1] ** 0.5
    weights = (q.to(wide) @ k.to(wide).transpose(-1, -2)).softmax(dim=-1)
    return weights.to(q.dtype) @ v


def draw(dtype, batch=2, heads=3, length=49, d=16):
    torch.manual_seed(0)
    return torch.randn(3, batch, heads, length, d).to(dtype).unbind()


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float64, 1e-14),
        (torch.float32, 1e-6),
        (torch.bfloat16, 1e-2),
        (torch.float16, 2e-3),
    ],
)
def test_sdpa_is_softmax_of_the_product(dtype, bound):
    """With gradients; in half precision only the rounding of k / sqrt(d) differs."""
    q, k, v = (t.requires_grad_() for t in draw(dtype))
    found, expected = attend(q, k, v), reference(q, k, v)
    assert relative_error(found, expected) < bound
    cotangent = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, (q, k, v), cotangent),
        torch.autograd.grad(expected, (q, k, v), cotangent),
        strict=True,
    ):
        assert relative_error(ours, theirs) < 2 * bound


def test_heads_are_outermost_and_q_k_v_interleave():
    heads, d, height, width = 2, 3, 2, 2
    qkv = torch.arange(heads * d * 3).float().reshape(1, -1, 1, 1).expand(1, -1, height, width)
    q, k, v = split_heads(qkv, heads)
    assert q.shape == (1, heads, height * width, d)
    for which, part in enumerate((q, k, v)):
        for head in range(heads):
            expected = [float(head * 3 * d + c * 3 + which) for c in range(d)]
            assert part[0, head, 0].tolist() == expected
    assert split_heads(qkv, heads).is_contiguous()
    merged = merge_heads(q, qkv)
    assert merged[0, :, 0, 0].tolist() == [*q[0, 0, 0].tolist(), *q[0, 1, 0].tolist()]


def fake_xformers(monkeypatch, calls):
    """A stand-in with the layout of xformers: [B, L, heads, d]."""

    def memory_efficient_attention(q, k, v):
        if tuple(q.shape) != xformers_package.TRIAL:
            calls.append(tuple(q.shape))
        return reference(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    install_fake(monkeypatch, memory_efficient_attention)


def install_fake(monkeypatch, memory_efficient_attention):
    """A package xformers with this attention; the CPU stands for the GPU."""
    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    package.ops = ops
    monkeypatch.setattr(xformers_package, "DEVICE", "cpu")
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture(autouse=True)
def forget_xformers():
    xformers_package.WORKING.clear()
    yield
    xformers_package.WORKING.clear()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_switch_reaches_every_attention_layer(name, monkeypatch):
    fake_xformers(monkeypatch, calls=[])
    network = NETWORKS[name]()
    layers = [m for m in network.modules() if hasattr(m, "qkv") or hasattr(m, "attn_qkv")]
    assert len(layers) >= 3
    set_attention(network, "xformers")
    assert {layer.attention_backend for layer in layers} == {"xformers"}
    set_attention(network, "sdpa")
    assert {layer.attention_backend for layer in layers} == {"sdpa"}


def test_the_choice_is_no_part_of_the_network(monkeypatch):
    fake_xformers(monkeypatch, calls=[])
    network = NETWORKS["edm2"]()
    before = network.net.to_json(), list(network.state_dict())
    set_attention(network, "xformers")
    assert (network.net.to_json(), list(network.state_dict())) == before


def test_xformers_gets_its_own_layout(monkeypatch):
    calls = []
    fake_xformers(monkeypatch, calls)
    q, k, v = draw(torch.float32)
    monkeypatch.setattr(attention, "_on_gpu", lambda tensor: True)
    found = attend(q, k, v, "xformers")
    assert calls == [(2, 49, 3, 16)]
    assert relative_error(found, attend(q, k, v)) < 1e-6


def test_networks_agree_through_either_backend(monkeypatch):
    calls = []
    fake_xformers(monkeypatch, calls)
    monkeypatch.setattr(attention, "_on_gpu", lambda tensor: True)
    official = Official("edm2_cond")
    network = official.build()
    expected = official.run(network)[0].x0
    set_attention(network, "xformers")
    assert relative_error(official.run(network)[0].x0, expected) < 1e-6
    assert calls


def test_missing_xformers_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "xformers", None)
    network = NETWORKS["song"]()
    with pytest.raises(UserError) as error:
        set_attention(network, "xformers")
    assert "pip install 'sid_ray[xformers]'" in str(error.value)
    assert "\n" not in str(error.value)
    fill(network)  # nothing was changed: it still runs
    assert network.model.dec["8x8_in0"].attention_backend == "sdpa"


def test_broken_xformers_says_why(monkeypatch):
    def broken(name, *args, **kwargs):
        if name.startswith("xformers"):
            raise ImportError("undefined symbol: _ZN2at4cuda")
        return original(name, *args, **kwargs)

    original = importlib.__import__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delitem(sys.modules, "xformers", raising=False)
    monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
    monkeypatch.setattr("builtins.__import__", broken)
    with pytest.raises(UserError, match="undefined symbol"):
        set_attention(NETWORKS["song"](), "xformers")


class InvalidLibError(Exception):
    """As xformers keeps it: what its compiled part was built for."""

    build_info = types.SimpleNamespace(
        metadata={"version": {"torch": "2.10.0+cu128", "cuda": 1208}}
    )


def no_operator(q, k, v):
    """What memory_efficient_attention raises where the compiled part was not loaded."""
    raise NotImplementedError(
        "No operator found for `memory_efficient_attention_forward` with inputs:\n     query ..."
    )


@pytest.mark.parametrize("kept", [True, False])
def test_xformers_whose_import_only_warns_is_refused_before_the_first_pass(monkeypatch, kept):
    """As 0.0.35 of the registry, built for CUDA 12, beside torch 2.13 for CUDA 13."""
    install_fake(monkeypatch, no_operator)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    if kept:
        library = types.ModuleType("xformers._cpp_lib")
        library._cpp_library_load_exception = InvalidLibError("xFormers can't load its extensions")
        monkeypatch.setitem(sys.modules, "xformers._cpp_lib", library)
    network = NETWORKS["song"]()
    with pytest.raises(UserError) as error:
        set_attention(network, "xformers")
    said = str(error.value)
    assert "\n" not in said
    assert "(CUDA 13.0)" in said and "whl/cu130" in said and "--resources.attention sdpa" in said
    expected = "built for torch 2.10.0+cu128 and CUDA 12.8" if kept else "No operator found"
    assert expected in said
    assert network.model.dec["8x8_in0"].attention_backend == "sdpa"


def test_xformers_that_fails_on_the_way_back_is_refused(monkeypatch):
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            return q * 1

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError("CUDA error: no kernel image is available for execution\nmore")

    install_fake(monkeypatch, OneWay.apply)
    with pytest.raises(UserError, match="no kernel image") as error:
        set_attention(NETWORKS["edm2"](), "xformers")
    assert "\n" not in str(error.value)


def test_xformers_is_tried_in_the_precision_that_is_wanted(monkeypatch):
    """Some of its kernels have half precision alone."""

    def half_only(q, k, v):
        if q.dtype == torch.float32:
            raise NotImplementedError("dtype=torch.float32 (supported: float16, bfloat16)")
        return q + k + v

    install_fake(monkeypatch, half_only)
    network = NETWORKS["edm2"]()
    with pytest.raises(UserError, match="does not work in float32"):
        set_attention(network, "xformers")
    set_precision(network, "float16")
    set_attention(network, "xformers")


def test_xformers_is_refused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="NVIDIA GPUs only") as error:
        set_attention(NETWORKS["song"](), "xformers")
    assert "sdpa" in str(error.value) and "\n" not in str(error.value)


def test_xformers_is_refused_for_tensors_on_a_cpu(monkeypatch):
    fake_xformers(monkeypatch, calls=[])
    with pytest.raises(UserError, match="'cpu'"):
        attend(*draw(torch.float32), "xformers")


def test_unknown_backend_is_named():
    with pytest.raises(UserError, match=r"'xformer'.*Did you mean xformers"):
        set_attention(NETWORKS["song"](), "xformer")
    with pytest.raises(UserError, match="'flash'"):
        attend(*draw(torch.float32), "flash")
