"""An auto-encoder that hands pixels through."""

import pytest
import torch

pytest.importorskip("diffusers")

from sid_ray.denoisers.pass_through import pass_through_vae


@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_pixels_come_out_as_they_went_in(channels):
    torch.manual_seed(0)
    vae = pass_through_vae(channels)
    images = torch.randn(2, channels, 32, 32).clamp(-3, 3)
    images[0] = 0  # one without any contrast
    assert (vae.decode(images).sample - images).abs().max() < 2e-6
    found = vae.encode(images).latent_dist
    assert (found.mean - images).abs().max() < 2e-6
    assert found.std.max() < 1e-6


@torch.no_grad()
def test_half_precision_keeps_eight_bits():
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).half()
    made = pass_through_vae(3).half().decode(images).sample
    assert (made - images).float().abs().max() < 2 / 255 / 4


def test_more_than_three_colours_are_refused():
    with pytest.raises(ValueError, match="4 channels"):
        pass_through_vae(4)
