"""Families, and what the arguments of official files mean here."""

import json
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_ray.denoisers.edm import EDMNetwork
from sid_ray.denoisers.edm2 import EDM2Network
from sid_ray.denoisers.registry import families, family_of, from_official
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.errors import UserError
from sid_ray.types import Condition, Want
from tests.denoisers.official import Official, count

CIFAR = {
    "img_resolution": 32,
    "img_channels": 3,
    "label_dim": 10,
    "augment_dim": 9,
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "dropout": 0.13,
    "use_fp16": False,
}
IMAGENET = {
    "img_resolution": 64,
    "img_channels": 3,
    "label_dim": 1000,
    "model_type": "DhariwalUNet",
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "use_fp16": True,
}
EDM2_XS = {
    "img_resolution": 64,
    "img_channels": 4,
    "label_dim": 1000,
    "model_channels": 128,
    "use_fp16": True,
    "dropout": 0.0,
}
SIDA_FLAGS = {"force_normalization": True, "use_gan": True}


@pytest.mark.parametrize(
    ("class_name", "kwargs", "family", "size"),
    [
        ("EDMPrecond", CIFAR, "edm", (55_735_299, 427)),
        ("EDMPrecond", IMAGENET, "edm", (295_899_267, 553)),
        (
            "EDMPrecond_EncoderDecoder",
            CIFAR | {"model_type": "SongUNet_EncoderDecoder"},
            "edm",
            (55_735_299, 427),
        ),
        (
            "EDMPrecond_EncoderDecoder",
            IMAGENET | {"model_type": "DhariwalUNet_EncoderDecoder"},
            "edm",
            (295_899_267, 553),
        ),
        ("Precond", EDM2_XS, "edm2", (124_713_253, 203)),
        ("EDM_2_Precond_EncoderDecoder", EDM2_XS | SIDA_FLAGS, "edm2", (124_713_253, 203)),
        ("EDM_2_Precond_Generator", EDM2_XS | SIDA_FLAGS, "edm2", (124_713_125, 200)),
    ],
)
def test_official_classes_build(class_name, kwargs, family, size):
    found, arguments = from_official(class_name, kwargs)
    assert found == family
    assert json.loads(json.dumps(arguments)) == arguments
    with torch.device("meta"):
        assert count(family_of(found).build(arguments)) == size


@pytest.mark.parametrize(
    "name",
    ["edm_ddpmpp_cond", "edm_ncsnpp_uncond", "edm_adm_uncond", "edm2_cond", "sida_ddpmpp_cond"],
)
def test_recorded_arguments_of_the_reference_networks(name):
    official = Official(name)
    expected = official.under("w/")
    with torch.device("meta"):
        network = family_of(official.family).build(official.arguments)
    if expected:
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        assert shapes == {key: value.shape for key, value in expected.items()}


def test_omitted_arguments_take_the_official_defaults():
    """They differ from class to class: an ADM file records neither blocks nor attention."""
    _, adm = from_official("EDMPrecond", {"img_resolution": 64, "img_channels": 3})
    assert adm["model_type"] == "DhariwalUNet"
    assert (adm["model_channels"], adm["num_blocks"]) == (192, 3)
    assert adm["attn_resolutions"] == [32, 16, 8]
    assert adm["channel_mult"] == [1, 2, 3, 4]
    _, song = from_official("EDMPrecond_EncoderDecoder", {"img_resolution": 32, "img_channels": 3})
    assert song["model_type"] == "SongUNet"
    assert (song["model_channels"], song["num_blocks"]) == (128, 4)
    assert song["attn_resolutions"] == [16]


def test_behaviour_flags_carry_no_state():
    flags = {"use_fp16": True, "sigma_min": 0, "sigma_max": float("inf"), "force_fp32": True}
    assert from_official("EDMPrecond", CIFAR | flags) == from_official("EDMPrecond", CIFAR)


@pytest.mark.parametrize(
    ("class_name", "kwargs", "message"),
    [
        ("VPPrecond", CIFAR, "unknown network class 'VPPrecond'"),
        ("Precon", EDM2_XS, "Did you mean Precond"),
        ("EDMPrecond", CIFAR | {"channels_mult": [1]}, "channels_mult.*channel_mult"),
        ("EDMPrecond", IMAGENET | {"embedding_type": "fourier"}, "embedding_type"),
        ("EDMPrecond", CIFAR | {"model_type": "UNet3D"}, "UNet3D"),
        ("EDMPrecond", CIFAR | {"model_type": ["SongUNet"]}, "model_type"),
        ("EDMPrecond", CIFAR | {"num_blocks": 10**12}, "num_blocks"),
        ("EDMPrecond", {"img_channels": 3}, "img_resolution"),
        ("Precond", EDM2_XS | {"logvar": False}, "logvar"),
        ("Precond", EDM2_XS | {"model_channels": "128"}, "model_channels"),
        ("Precond", EDM2_XS | {3: 4}, "3"),
    ],
)
def test_what_is_not_known_is_one_line(class_name, kwargs, message):
    with pytest.raises(UserError, match=message) as error:
        from_official(class_name, kwargs)
    assert "\n" not in str(error.value)


def test_wrong_arguments_are_the_users_to_mend():
    with pytest.raises(UserError, match=r"not an EDM network's arguments.*img_sizes"):
        family_of("edm").build({"img_sizes": 3})
    with pytest.raises(UserError, match=r"not an EDM2 network's arguments.*img_resolution"):
        family_of("edm2").build({"img_channels": 4})
    with pytest.raises(UserError, match="Did you mean edm"):
        family_of("edm3")


def test_only_edm2_constrains_its_weights():
    weight = torch.randn(4, 5)
    assert family_of("edm").constrain("w", weight) is None
    constrained = family_of("edm2").constrain("w", weight)
    assert constrained is not None
    assert torch.allclose(constrained.square().mean(1), torch.ones(4), atol=1e-3)
    assert family_of("edm2").constrain("unet.out_gain", torch.ones([])) is None
    assert set(families()) >= {"edm", "edm2", "stable-diffusion"}


ARGUMENTS = sorted({f.name for f in (*fields(EDMNetwork), *fields(EDM2Network))} - {"logvar"})
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["SongUNet", "DhariwalUNet", "fourier", "skip", "residual"]),
    st.lists(st.integers(-1, 5), max_size=4),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    class_name=st.sampled_from(["EDMPrecond", "EDMPrecond_EncoderDecoder", "Precond"]),
    changes=st.dictionaries(st.sampled_from(ARGUMENTS), VALUES, max_size=3),
)
def test_any_arguments_build_or_are_refused_in_one_line(class_name, changes):
    """What is accepted runs; what is not is a UserError, never another exception."""
    edm2 = class_name == "Precond"
    base = {"img_resolution": 8, "img_channels": 3, "model_channels": 16, "num_blocks": 1}
    base |= {"channel_mult": [1, 2], "attn_resolutions": [4], "label_dim": 2}
    try:
        family, arguments = from_official(class_name, base | changes)
        with torch.device("meta"):
            network = family_of(family).build(arguments)
    except UserError as error:
        assert "\n" not in str(error)
        return
    net = network.net
    assert family == ("edm2" if edm2 else "edm")
    if net.img_resolution > 64 or net.img_channels > 64:
        return
    with torch.device("meta"):
        x = torch.empty(1, net.img_channels, net.img_resolution, net.img_resolution)
        level = EDMSchedule().level(torch.ones(1))
        assert network(x, level, Condition(), Want.X0).x0.shape == x.shape
