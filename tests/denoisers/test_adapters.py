"""Adapters over a frozen base: exact at zero, right in direction, and apart from each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sid_ray.denoisers.adapter_names import DOWN, UP
from sid_ray.denoisers.adapters import (
    Adapter,
    check_targets,
    merged_weights,
    start_adapter,
    target_layers,
    with_adapter,
)
from sid_ray.denoisers.convolution import freeze, weights_ready
from sid_ray.denoisers.edm2 import MPConv
from sid_ray.denoisers.edm_layers import Conv2d
from sid_ray.denoisers.recompute import set_recompute
from sid_ray.denoisers.registry import family_of
from sid_ray.errors import UserError
from sid_ray.types import Want
from tests.denoisers.tiny_adapters import FAMILIES, adapter_of, called, changed, tiny

DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_at_zero_is_its_base_to_the_bit(family, precision):
    base = tiny(family)
    base.compute_dtype = DTYPES[precision]
    tree = with_adapter(base, adapter_of(family))
    start_adapter(tree, seed=1, role=0)
    assert all(name.endswith((DOWN, UP)) for name, _ in tree.named_parameters())
    assert not list(tree.state_dict().keys() - dict(tree.named_parameters()).keys())
    ours, theirs = called(tree, family)[1], called(base, family)[1]
    assert torch.equal(ours, theirs)
    changed(tree, 0.5)
    assert not torch.equal(called(tree, family)[1], theirs)
    assert torch.equal(called(base, family)[1], theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_trees_share_the_base_and_nothing_else(family):
    base = tiny(family)
    one, other = (with_adapter(base, adapter_of(family)) for _ in range(2))
    of_base = {value.data_ptr() for value in base.parameters()}
    for tree in (one, other):
        assert of_base <= {value.data_ptr() for value in tree.buffers()}
        assert not of_base & {value.data_ptr() for value in tree.parameters()}
    own = {value.data_ptr() for value in one.parameters()}
    assert not own & {value.data_ptr() for value in other.parameters()}
    before = torch.get_rng_state()
    with_adapter(base, adapter_of(family))
    assert torch.equal(before, torch.get_rng_state())


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "convolution": (lambda: nn.Conv2d(3, 5, 3, padding=1), (2, 3, 6, 6)),
    "ours": (lambda: Conv2d(3, 5, 3), (2, 3, 6, 6)),
    "magnitude-preserving": (lambda: MPConv(3, 5, 3), (2, 3, 6, 6)),
    "magnitude-preserving linear": (lambda: MPConv(6, 5, 0), (4, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_an_adapter_that_spans_its_layer_moves_as_the_whole_layer_does(kind):
    """With rows of A orthonormal, a step of B along its gradient G A^T changes W' along G."""
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    base = nn.Sequential()
    base.layer = make().double()
    x = torch.randn(shape, dtype=torch.float64)
    weight = base.layer.weight
    base.layer(x).pow(3).sum().backward()
    whole = weight.grad.clone()
    width = weight[0].numel()
    tree = with_adapter(base, Adapter(width, 2.0 * width, ("layer",)))
    parts = dict(tree.named_parameters())
    (down,), (up,) = ([v for n, v in parts.items() if n.endswith(end)] for end in (DOWN, UP))
    assert down.dtype == up.dtype == torch.float64
    down.data = torch.linalg.qr(torch.randn(width, width).double())[0].reshape(down.shape)
    tree.requires_grad_(True)
    tree.layer(x).pow(3).sum().backward()
    before = merged_weights(tree)["layer.weight"]
    up.data -= 1e-3 * up.grad
    moved = merged_weights(tree)["layer.weight"] - before
    cosine = torch.cosine_similarity(-moved.flatten(), whole.flatten(), dim=0)
    assert abs(1 - cosine) < 1e-12
    # A factor of alpha / rank in W', and one in the gradient of B.
    torch.testing.assert_close(moved, -4e-3 * whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_an_adapter_are_those_of_finite_differences(family):
    tree = changed(with_adapter(tiny(family).double(), adapter_of(family)), 0.1)
    tree.requires_grad_(True)
    called(tree, family)[1].square().sum().backward()
    rng = torch.Generator().manual_seed(2)
    step = {n: torch.randn(v.shape, generator=rng).double() for n, v in tree.named_parameters()}
    for end in (DOWN, UP):
        # The head of log-variances has no part in an image.
        mine = {n: v for n, v in tree.named_parameters() if n.endswith(end) and v.grad is not None}
        assert len(mine) >= len(step) // 2 - 3
        along = sum((v.grad * step[n]).sum() for n, v in mine.items())

        def loss(by: float, mine: dict[str, Tensor] = mine) -> Tensor:
            with torch.no_grad():
                for name, value in mine.items():
                    value += by * step[name]
                found = called(tree, family)[1].square().sum()
                for name, value in mine.items():
                    value -= by * step[name]
            return found

        # diffusers' rotary embeddings, and sums of linear attention, are float32 in every network.
        size, rtol = (1e-3, 1e-3) if family in ("sana", "flux") else (1e-5, 1e-6)
        slope = (loss(size) - loss(-size)) / (2 * size)
        torch.testing.assert_close(along, slope, rtol=rtol, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_computed_again_is_of_the_tree_whose_it_was(family):
    """The other tree is called between the forward and the backward pass."""
    base = tiny(family)
    trees = [changed(with_adapter(base, adapter_of(family)), 0.1, seed) for seed in (1, 2)]
    keys = torch.tensor([3, -4])
    found = []
    for recompute in (False, True):
        tree, other = trees
        for each in trees:
            each.requires_grad_(True)
            set_recompute(each, recompute)
        x, out = called(tree, family, keys=keys)
        called(other, family, keys=keys)
        out.square().sum().backward()
        reached = [value.grad for value in tree.parameters() if value.grad is not None]
        assert len(reached) > len(list(tree.parameters())) // 2
        found.append([x.grad, *reached])
        assert all(value.grad is None for value in other.parameters())
        tree.zero_grad(set_to_none=True)
    assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_are_a_plain_network_of_the_same_function(family):
    base = tiny(family).double()
    tree = changed(with_adapter(base, adapter_of(family)), 0.1)
    plain = copy.deepcopy(base)
    plain.load_state_dict(merged_weights(tree), strict=True)
    ours, theirs = called(tree, family)[1], called(plain, family)[1]
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(theirs, called(base, family)[1], rtol=1e-3)


def test_dropout_masks_are_the_samples_own_in_every_tree():
    base = tiny("edm")
    tree = with_adapter(base, adapter_of("edm"))
    keys = torch.tensor([5, 6])
    dropped = [called(net, "edm", keys=keys)[1] for net in (base, tree)]
    assert torch.equal(*dropped)
    assert not torch.equal(dropped[0], called(base, "edm")[1])


@pytest.mark.parametrize("family", ["edm", "edm2", "stable-diffusion"])
def test_weights_made_ready_are_of_one_tree(family):
    base = tiny(family)
    trees = [changed(with_adapter(base, adapter_of(family)), 0.1, seed) for seed in (1, 2)]
    expected = [called(net, family)[1] for net in (base, *trees)]
    with weights_ready(trees[0]):
        found = [called(net, family)[1] for net in (base, *trees)]
    torch.testing.assert_close(found, expected)
    freeze(trees[0])
    held = [value.data_ptr() for name, value in trees[0].named_buffers() if value.numel()]
    freeze(trees[0])  # twice is once
    assert held == [v.data_ptr() for _, v in trees[0].named_buffers() if v.numel()]
    torch.testing.assert_close([called(net, family)[1] for net in (base, *trees)], expected)


def test_edm2s_magnitudes_stay_under_an_adapter():
    base = tiny("edm2")
    tree = changed(with_adapter(base, adapter_of("edm2")), 3.0)
    for layer in tree.modules():
        if isinstance(layer, MPConv):
            rows = layer.made_ready(None).flatten(1)
            torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), rtol=1e-3, atol=0)


def test_the_head_of_log_variances_learns_through_its_adapter():
    tree = changed(with_adapter(tiny("edm2"), adapter_of("edm2")), 0.1).requires_grad_(True)
    _, found = called(tree, "edm2", want=Want.LOGVAR)
    found.sum().backward()
    got = {name for name, value in tree.named_parameters() if value.grad is not None}
    assert got == {f"logvar_linear{end}" for end in (DOWN, UP)}


def test_layers_are_named_by_endings_patterns_and_pefts_word():
    net = tiny("sd3")
    assert len(dict(target_layers(net, ["to_q", "0.attn.to_k"]))) == 3
    every = {name for name, _ in target_layers(net, ["all-linear"])}
    linear = {name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    assert every == linear and len(every) > 10
    assert every < {name for name, _ in target_layers(net, ["*"])}
    dense = {name for name, _ in target_layers(tiny("edm2"), ["all-linear"])}
    assert "unet.emb_noise" in dense and not any("conv" in name for name in dense)
    with pytest.raises(UserError, match=r"nothing_of_the_kind.*to_q"):
        check_targets(net, Adapter(1, 1.0, ("nothing_of_the_kind",)))


EXPECTED = {
    "edm": ["qkv", "proj", "conv0", "conv1"],
    "edm2": ["attn_qkv", "attn_proj", "conv_res0", "conv_res1", "logvar_linear"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_own_targets_are_all_its_projections(family):
    """Every linear layer or convolution of an attention or feed-forward part, and nothing else."""
    net = tiny(family)
    chosen = {name for name, _ in target_layers(net, family_of(family).adapter_targets)}
    every = {name for name, _ in target_layers(net, ["*"])}
    if family in EXPECTED:
        wanted = {name for name in every if name.rpartition(".")[2] in EXPECTED[family]}
    else:
        parts = (".attn", ".ff", "proj_mlp", "single_transformer_blocks.0.proj_out", ".attentions.")
        wanted = {name for name in every if any(part in name for part in parts)}
        wanted -= {name for name in every if name.endswith(("proj_in", ".proj_out", "conv_depth"))}
        wanted |= {n for n in every if "single_transformer_blocks" in n and "norm" not in n}
    assert chosen == wanted and chosen
