"""Keyed dropout: masks that belong to the sample."""

import torch

from sid_ray.denoisers.dropout import keyed_dropout

KEYS = torch.tensor([1, -5, 2**61])


def test_masks_follow_the_sample_not_its_place():
    x = torch.ones(3, 4, 5, 5)
    whole = keyed_dropout(x, KEYS, 2, 0.3)
    order = torch.tensor([2, 0])
    assert torch.equal(keyed_dropout(x[order], KEYS[order], 2, 0.3), whole[order])
    assert torch.equal(keyed_dropout(x, KEYS, 2, 0.3), whole)
    assert not torch.equal(keyed_dropout(x, KEYS, 3, 0.3), whole)
    assert not torch.equal(whole[0], whole[1])


def test_rate_and_scale():
    x = torch.ones(3, 64, 32, 32)
    out = keyed_dropout(x, KEYS, 0, 0.13)
    dropped = (out == 0).float().mean(dim=(1, 2, 3))
    assert torch.allclose(dropped, torch.full((3,), 0.13), atol=5e-3)
    assert torch.allclose(out[out != 0], torch.tensor(1 / 0.87))
    # Neighbouring elements and channels are independent.
    kept = (out != 0).float() - 0.87
    for shifted in (kept[..., 1:] * kept[..., :-1], kept[:, 1:] * kept[:, :-1]):
        assert abs(shifted.mean()) < 2e-3


def test_off_means_untouched():
    x = torch.randn(3, 2)
    assert keyed_dropout(x, None, 0, 0.5) is x
    assert keyed_dropout(x, KEYS, 0, 0.0) is x
