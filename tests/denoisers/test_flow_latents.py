"""Latents of SD3, FLUX and SANA against their pipelines in diffusers, over tiny auto-encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from sid_ray.denoisers.codecs import from_moments
from sid_ray.denoisers.flow_latents import DeepLatents, ShiftedLatents
from sid_ray.errors import UserError
from tests.denoisers.tiny_flow import deep_vae, shifted_vae


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A 16-channel AutoencoderKL that shifts, and a DC-AE, each as the part ``vae``."""
    home = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    shifted_vae().save_pretrained(home / "kl" / "vae")
    deep_vae().save_pretrained(home / "dc" / "vae")
    return {"kl": home / "kl", "dc": home / "dc"}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def bare(pipeline: str, vae, **attributes):
    """A pipeline's object of which one method is called."""
    import diffusers

    made = object.__new__(getattr(diffusers, pipeline))
    object.__setattr__(made, "vae", vae)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made


@pytest.mark.parametrize("name", ["StableDiffusion3Img2ImgPipeline", "FluxImg2ImgPipeline"])
def test_shifted_latents_are_the_pipelines(folders, images, name):
    """Of their image-to-image pipelines, which encode; and back."""
    convention = ShiftedLatents()
    vae = convention.load(folders["kl"])
    codec = convention.codec(vae, 2)
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(3))
    found = codec.encode(images, noise)
    if name.startswith("Flux"):
        expected = bare(name, vae)._encode_vae_image(images, draw)
    else:
        sample = vae.encode(images).latent_dist.sample(draw)
        expected = (sample - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    decoded = vae.decode(found / vae.config.scaling_factor + vae.config.shift_factor).sample
    torch.testing.assert_close(codec.decode(found), decoded, rtol=1e-5, atol=1e-5)
    assert codec.picture_shape((16, 8, 8)) == (3, 16, 16)
    assert convention.factor(vae.config) == 2


def test_deep_latents_have_no_deviation(folders, images):
    convention = DeepLatents()
    vae = convention.load(folders["dc"])
    codec = convention.codec(vae, 2)
    latents = vae.encode(images).latent * 0.41407
    assert latents.shape == (3, 4, 8, 8) and latents.std() > 1e-3
    for noise in (None, torch.randn(3, 4, 8, 8)):
        torch.testing.assert_close(codec.encode(images, noise), latents, rtol=1e-5, atol=1e-6)
    decoded = vae.decode(latents / 0.41407, return_dict=False)[0]
    torch.testing.assert_close(codec.decode(latents), decoded, rtol=1e-5, atol=1e-5)
    assert codec.picture_shape((4, 8, 8)) == (3, 16, 16)
    assert convention.factor(convention.check(folders["dc"])) == 2


@pytest.mark.parametrize(("name", "convention"), [("kl", ShiftedLatents()), ("dc", DeepLatents())])
def test_stored_latents_are_standardised_by_the_config(folders, images, name, convention):
    """Data sets store the posterior; what scales it is read without the auto-encoder."""
    codec = convention.codec(convention.load(folders[name]), 3)
    moments, standard = codec.encode_moments(images), convention.standard(folders[name])
    assert torch.equal(from_moments(moments, None, standard), codec.encode(images))
    assert convention.standard(folders[name] / "vae") == standard


def test_what_computes_in_half_precision():
    assert ShiftedLatents().dtype("bfloat16") == torch.float16
    assert ShiftedLatents().dtype("float32") == torch.float32
    assert DeepLatents().dtype("float16") == torch.float32


def test_others_auto_encoders_are_refused(folders, tmp_path):
    with pytest.raises(UserError, match="describes AutoencoderDC, expected AutoencoderKL"):
        ShiftedLatents().check(folders["dc"])
    with pytest.raises(UserError, match="describes AutoencoderKL, expected AutoencoderDC"):
        DeepLatents().check(folders["kl"])
    with pytest.raises(UserError, match=r"--teacher\.vae FOLDER"):
        DeepLatents().standard(None)
    for change, said in (
        ({"latents_mean": [0.0]}, "'latents_mean' is not supported"),
        ({"scaling_factor": None}, "no scaling factor"),
    ):
        config = json.loads((folders["kl"] / "vae" / "config.json").read_text()) | change
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=said):
            ShiftedLatents().standard(tmp_path)
