"""The hash behind dropout's masks: as even and as independent as chance.

Every input is fixed, so nothing here fails now and then: a bound is how far chance may be.
"""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from sid_ray.denoisers import dropout
from sid_ray.denoisers.dropout import (
    GOLDEN,
    keep_mask,
    keep_of_elements,
    keyed_dropout,
    mix64,
    mix_words,
)

DEVIATIONS = 4.5  # of one mean: chance goes further once in 150,000
FURTHEST = 5.5  # of thousands of means
P = 0.13


def keys_of(count: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**62), 2**62, (count,), generator=rng)


def bits(z: Tensor) -> Tensor:
    """[N] int64 -> [N, 64] of 0 and 1."""
    return ((z[:, None] >> torch.arange(64)) & 1).double()


def dropped(keys: Tensor, site: int = 0, p: float = P, elements: int = 4096) -> Tensor:
    """[B, elements], less the mean, over the deviation of one: chance is N(0, 1) in the mean."""
    kept = keep_mask(keys, site, p, elements).double()
    rate = dropout.rounded(p) / 2**16
    return ((1 - rate) - kept) / (rate * (1 - rate)) ** 0.5


def assert_chance(products: Tensor) -> None:
    """Products of independent numbers of mean 0 and variance 1: their mean is near 0."""
    assert abs(float(products.mean())) < DEVIATIONS / products.numel() ** 0.5


@pytest.mark.parametrize("kind", ["random", "the counter of a mask"])
def test_every_bit_of_a_word_flips_every_other_with_probability_one_half(kind):
    count = 10_000
    words = keys_of(count) if kind == "random" else keys_of(1) + torch.arange(count) * GOLDEN
    base = mix_words(words.clone())
    for bit in range(64):
        mask = 1 << bit if bit < 63 else -(2**63)
        flipped = bits(base ^ mix_words(words ^ mask)).mean(0)
        assert float((flipped - 0.5).abs().max()) < FURTHEST * 0.5 / count**0.5, bit


@pytest.mark.parametrize("p", [0.05, 0.13, 0.5, 0.9])
def test_every_place_in_a_word_and_every_element_drops_at_the_rate(p):
    found = dropped(keys_of(2000), p=p, elements=2048)
    of_lane = found.reshape(2000, -1, 4).mean((0, 1)) * (found.numel() / 4) ** 0.5
    assert float(of_lane.abs().max()) < FURTHEST
    of_element = found.mean(0) * 2000**0.5
    assert float(of_element.abs().max()) < FURTHEST
    of_sample = found.mean(1) * 2048**0.5
    assert float(of_sample.abs().max()) < FURTHEST
    # Neither more alike than chance: as a chi-squared of 2,000 degrees of freedom.
    assert abs(float(of_sample.square().mean()) - 1) < DEVIATIONS * (2 / 2000) ** 0.5
    assert abs(float(of_element.square().mean()) - 1) < DEVIATIONS * (2 / 2048) ** 0.5


@pytest.mark.parametrize("apart", [*range(1, 9), 16, 32, 64, 1024])
def test_neighbours_are_independent(apart):
    """Within a word and beyond it, along rows, columns and channels of an image."""
    found = dropped(keys_of(256))
    assert_chance(found[:, apart:] * found[:, :-apart])


def test_three_neighbours_are_independent():
    """All that pairs do not show: no parity within a word."""
    lanes = dropped(keys_of(256)).reshape(256, -1, 4)
    for left_out in range(4):
        assert_chance(lanes[..., [i for i in range(4) if i != left_out]].prod(-1))
    assert_chance(lanes.prod(-1))


@pytest.mark.parametrize(
    "other",
    [lambda k: k ^ 1, lambda k: k + 1, lambda k: ~k, lambda k: -k, lambda k: k ^ (1 << 62)],
    ids=["lowest bit", "next", "of real images", "negative", "highest bit"],
)
def test_keys_that_are_alike_have_masks_that_are_not(other):
    """~key is the real images' of the same pass, key + 1 another evaluation's."""
    keys = keys_of(256)
    mine, others = dropped(keys), dropped(other(keys))
    assert_chance(mine * others)
    for apart in (1, 4, 64):  # nor the same mask a little further
        assert_chance(mine[:, apart:] * others[:, :-apart])
        assert_chance(mine[:, :-apart] * others[:, apart:])


def test_small_whole_numbers_are_keys_as_good_as_any():
    found = dropped(torch.arange(1024), elements=1024)
    assert_chance(found)
    assert_chance(found[1:] * found[:-1])


def test_layers_are_independent():
    keys = keys_of(64)
    by_site = torch.stack([dropped(keys, site, elements=1024) for site in range(40)])
    for apart in (1, 2, 7):
        assert_chance(by_site[apart:] * by_site[:-apart])


def test_a_mask_is_part_of_any_longer_one():
    """Also where elements do not fill a word."""
    whole = keep_mask(keys_of(3), 5, P, 4096)
    for elements in (1, 2, 3, 4, 5, 1023):
        assert torch.equal(keep_mask(keys_of(3), 5, P, elements), whole[:, :elements])


def test_compilers_are_given_the_same_masks(monkeypatch):
    """The formula of single elements, run without a compiler (compiled: test_compiled.py)."""
    keys = torch.tensor([1, -5, 2**61, -(2**63), 2**63 - 1])
    expected = keep_mask(keys, 57, P, 4099)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(keep_mask(keys, 57, P, 4099), expected)
    start = mix64(keys + dropout._signed64(58 * GOLDEN))[:, None]
    found = keep_of_elements(start, dropout.rounded(P), 4099)
    assert torch.equal(found, expected)


def test_masks_are_those_of_their_number():
    """A change here changes the numbers of runs: MASKS counts it, and old runs are refused."""
    mask = keep_mask(torch.tensor([1, -5, 2**61, -(2**63)]), 3, P, 4096)
    digest = hashlib.sha256(mask.numpy().tobytes()).hexdigest()[:16]
    assert (dropout.MASKS, digest) == (2, "8e48bfaebfc8af5b")


def test_a_probability_is_rounded_and_never_drops_all():
    assert dropout.rounded(0.13) == 8520
    assert keep_mask(keys_of(4), 0, 1e-9, 4096).all()
    assert keep_mask(keys_of(64), 0, 1 - 1e-9, 65536).any()


@pytest.mark.slow
def test_masks_that_inductor_has_compiled_are_the_same():
    """Of an image in the order of a network's: its elements are counted by two indices."""
    x = torch.ones(8, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    keys, site = torch.arange(8), torch.tensor(3)

    def dropped(x: torch.Tensor) -> torch.Tensor:
        return keyed_dropout(x, keys, site, 0.1)

    compiled = torch.compile(dropped, dynamic=False, fullgraph=True)
    assert torch.equal(compiled(x), dropped(x))
