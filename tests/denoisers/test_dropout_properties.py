"""Dropout keyed by sample and layer."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from sid_ray.denoisers.dropout import keyed_dropout, number_sites, rounded
from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.denoisers.edm2 import EDM2Denoiser, EDM2Network
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.types import Condition

KEYS = st.integers(-(2**63), 2**63 - 1)
SIZES = {"img_resolution": 8, "img_channels": 3, "model_channels": 16, "channel_mult": (1, 2)}
NETWORKS = {
    "song": lambda: EDMDenoiser(EDMNetwork(**SIZES, num_blocks=1, dropout=0.3)),
    "adm": lambda: EDMDenoiser(
        EDMNetwork(**SIZES, num_blocks=1, dropout=0.3, model_type="DhariwalUNet")
    ),
    "edm2": lambda: EDM2Denoiser(EDM2Network(**SIZES, num_blocks=1, dropout=0.3)),
}


@settings(max_examples=50, deadline=None)
@given(
    keys=st.lists(KEYS, min_size=1, max_size=6),
    site=st.integers(0, 200),
    p=st.floats(0.01, 0.99),
    order=st.randoms(use_true_random=False),
)
def test_masks_do_not_depend_on_packing(keys, site, p, order):
    """Whole batch, one by one, shuffled, or again: a sample's mask is its own."""
    key = torch.tensor(keys)
    x = torch.ones(len(keys), 3, 4, 5)
    whole = keyed_dropout(x, key, site, p)
    assert torch.equal(whole, keyed_dropout(x, key, site, p))
    single = [keyed_dropout(x[:1], key[i : i + 1], site, p) for i in range(len(keys))]
    assert torch.equal(whole, torch.cat(single))
    permuted = list(range(len(keys)))
    order.shuffle(permuted)
    assert torch.equal(whole[permuted], keyed_dropout(x, key[permuted], site, p))


@settings(max_examples=20, deadline=None)
@given(key=KEYS, site=st.integers(0, 200), p=st.floats(0.01, 0.99))
def test_p_is_respected_and_the_mean_is_kept(key, site, p):
    count = 40_000
    out = keyed_dropout(torch.ones(1, count), torch.tensor([key]), site, p)
    dropped = (out == 0).double().mean().item()
    assert abs(dropped - p) < 5 * (p * (1 - p) / count) ** 0.5
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - rounded(p) / 2**16)))


@settings(max_examples=20, deadline=None)
@given(key=KEYS, site=st.integers(0, 200))
def test_samples_and_layers_are_independent(key, site):
    x = torch.ones(1, 10_000)
    mine = keyed_dropout(x, torch.tensor([key]), site, 0.5) == 0
    for other_key, other_site in ((key ^ 1, site), (key, site + 1)):
        other = keyed_dropout(x, torch.tensor([other_key]), other_site, 0.5) == 0
        agree = (mine == other).double().mean().item()
        assert abs(agree - 0.5) < 0.03


def test_off_without_keys_or_with_p_zero():
    x = torch.randn(2, 3)
    assert keyed_dropout(x, None, 0, 0.5) is x
    assert keyed_dropout(x, torch.tensor([1, 2]), 0, 0.0) is x


def test_recomputation_sees_the_same_masks():
    x, key = torch.randn(2, 50, requires_grad=True), torch.tensor([3, 4])
    plain = keyed_dropout(x.sin(), key, 1, 0.4)
    (expected,) = torch.autograd.grad(plain.sum(), x)
    again = checkpoint(lambda y: keyed_dropout(y.sin(), key, 1, 0.4), x, use_reentrant=False)
    (found,) = torch.autograd.grad(again.sum(), x)
    assert torch.equal(found, expected)


def test_every_layer_of_a_network_has_its_own_site():
    for build in NETWORKS.values():
        network = build()
        layers = [m for m in network.modules() if hasattr(m, "dropout_site")]
        assert [layer.dropout_site for layer in layers] == list(range(len(layers)))
        assert number_sites(network) == len(layers) > 5


def test_a_network_gives_a_sample_the_same_answer_in_any_packing():
    for build in NETWORKS.values():
        torch.manual_seed(0)
        network = build()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            x, keys = torch.randn(4, 3, 8, 8), torch.arange(4) * 1_000_003
            level = EDMSchedule().level(torch.tensor([0.2, 1.0, 5.0, 20.0]))
            whole = network(x, level, Condition(dropout_keys=keys)).x0
            parts = [
                network(
                    x[part],
                    EDMSchedule().level(level.sigma[part]),
                    Condition(dropout_keys=keys[part]),
                ).x0
                for part in (slice(0, 1), slice(1, 4))
            ]
            off = network(x, level, Condition()).x0
        assert torch.allclose(whole, torch.cat(parts), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(whole, off, rtol=1e-2)
