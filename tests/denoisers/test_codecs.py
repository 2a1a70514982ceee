"""Codecs over a small AutoencoderKL: scaling, pixel ranges, batches."""

from __future__ import annotations

import pytest
import torch

from sid_ray.denoisers.codecs import (
    EDM2_RAW_MEAN,
    EDM2_RAW_STD,
    IdentityCodec,
    edm2_codec,
    stable_diffusion_codec,
)
from sid_ray.evaluation.samplers import to_uint8

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=16,
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_stable_diffusion_scales_the_posterior(vae, images):
    codec, noise = stable_diffusion_codec(vae), torch.randn(5, 4, 8, 8)
    posterior = vae.encode(images).latent_dist
    expected = (posterior.mean + posterior.std * noise) * 0.18215
    latents = codec.encode(images, noise)
    assert torch.allclose(latents, expected, atol=1e-6)
    assert torch.allclose(codec.encode(images), posterior.mean * 0.18215, atol=1e-6)
    decoded = vae.decode(latents / 0.18215).sample
    assert torch.allclose(codec.decode(latents), decoded, atol=1e-5)
    differing = codec.decode_uint8(latents).int() - to_uint8(decoded).int()
    assert differing.abs().max() <= 1 and (differing != 0).float().mean() < 0.01


def test_edm2_standardises_each_channel_and_feeds_unit_pixels(vae, images):
    codec = edm2_codec(vae)
    mean, std = (torch.tensor(v)[:, None, None] for v in (EDM2_RAW_MEAN, EDM2_RAW_STD))
    posterior = vae.encode((images + 1) / 2).latent_dist
    latents = codec.encode(images)
    assert torch.allclose(latents, (posterior.mean - mean) / std * 0.5, atol=1e-5)
    pixels = vae.decode(latents / 0.5 * std + mean).sample
    assert torch.allclose(codec.decode(latents), pixels * 2 - 1, atol=1e-5)
    differing = codec.decode_uint8(latents).int() - (pixels.clamp(0, 1) * 255).byte().int()
    assert differing.abs().max() <= 1 and (differing != 0).float().mean() < 0.01


def test_edm2_latents_of_the_published_statistics_have_deviation_one_half(vae):
    codec = edm2_codec(vae)
    mean = torch.tensor(EDM2_RAW_MEAN)[None, :, None, None].expand(1, 4, 1, 1)
    std = torch.tensor(EDM2_RAW_STD)[None, :, None, None]
    centre = codec.from_moments(torch.cat([mean, std], dim=1))
    assert torch.allclose(centre, torch.zeros(1, 4, 1, 1), atol=1e-6)
    above = codec.from_moments(torch.cat([mean, std], dim=1), torch.ones(1, 4, 1, 1))
    assert torch.allclose(above, torch.full((1, 4, 1, 1), 0.5))


@pytest.mark.parametrize("make", [stable_diffusion_codec, edm2_codec])
def test_batches_and_slicing_change_nothing(vae, images, make):
    whole = make(vae, batch=5)
    latents = whole.encode(images)
    for batch in (1, 2):
        parts = make(vae, batch=batch)
        assert torch.allclose(parts.encode(images), latents, atol=1e-5)
        assert torch.allclose(parts.decode(latents), whole.decode(latents), atol=1e-5)


def test_stored_moments_give_the_same_latents(vae, images):
    codec, noise = edm2_codec(vae), torch.randn(5, 4, 8, 8)
    moments = codec.encode_moments(images)
    assert moments.shape == (5, 8, 8, 8)
    assert torch.equal(codec.from_moments(moments, noise), codec.encode(images, noise))


def test_identity(images):
    codec = IdentityCodec()
    assert codec.encode(images) is images and codec.decode(images) is images
    assert torch.equal(codec.decode_uint8(images), to_uint8(images))
