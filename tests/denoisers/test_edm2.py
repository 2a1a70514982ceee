"""EDM2 against numbers of the official code; forced weight normalisation."""

import copy

import pytest
import torch

from sid_ray.denoisers.edm2 import (
    EDM2_PRESETS,
    EDM2Denoiser,
    EDM2Network,
    forced_normalize,
    normalize,
    normalize_weights,
    resample,
)
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.types import Condition, Want
from tests.denoisers.official import (
    Official,
    answer,
    check,
    check_weight_gradients,
    count,
    fill,
    listing,
    official_listing,
    relative_error,
    summary,
)

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
ALL = Want.X0 | Want.LOGVAR
TINY = EDM2Network(
    img_resolution=16,
    img_channels=4,
    label_dim=4,
    model_channels=32,
    channel_mult=(1, 2, 4),
    num_blocks=1,
    attn_resolutions=(8, 4),
)


@pytest.fixture(scope="module")
def official() -> Official:
    return Official("edm2_cond")


@BOTH
def test_output_and_gradients(official, dtype):
    network = official.build(dtype)
    out, grad_x, grad_sigma = official.run(network, ALL)
    assert out.logvar.shape == (3,)
    check(out.x0, official, "out/D_x")
    check(out.logvar, official, "out/logvar")
    check(grad_x, official, "grad/x")
    if dtype == torch.float32:
        assert relative_error(grad_sigma, official["grad/sigma"]) < 1e-5
        bound = 4 * official.about["f32_vs_f64_rel"]["gradw_max"]
        check_weight_gradients(network, official.under("gradw/"), bound)


def test_missing_labels(official):
    out, _, _ = official.run(official.build(), labels=False)
    check(out.x0, official, "out/D_x_uncond")


def test_a_seed_means_the_official_initial_weights(official):
    """Bit for bit: the recorded weights are a known function of the initial ones."""
    ours, theirs = official.weights_from_seeds(), official.under("w/")
    assert set(ours) == set(theirs)
    assert [key for key, value in theirs.items() if not torch.equal(ours[key], value)] == []


def test_normalised_weights_give_the_official_training_mode(official):
    """The official code normalises inside its training-mode forward; here it comes before."""
    network = official.build()
    normalize_weights(network)
    for name, value in official.under("train/w_after/").items():
        assert relative_error(network.get_parameter(name), value) < 2e-7
    out, grad_x, _ = official.run(network, ALL)
    check(out.x0, official, "train/out/D_x")
    check(out.logvar, official, "train/out/logvar")
    check(grad_x, official, "train/grad/x")
    bound = 4 * official.about["f32_vs_f64_rel"]["gradw_max"]
    check_weight_gradients(network, official.under("train/gradw/"), bound)
    normalize_weights(network)
    check(official.run(network)[0].x0, official, "train/out/D_x_second_forward")


def test_forced_normalisation_leaves_gains_and_buffers(official):
    network = official.build()
    before = copy.deepcopy(network.state_dict())
    normalize_weights(network)
    for name, value in network.state_dict().items():
        if value.ndim < 2:
            assert torch.equal(value, before[name]), name
        else:
            rms = value.square().flatten(1).mean(1).sqrt()
            assert torch.allclose(rms, torch.ones_like(rms), atol=1e-3), name
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_forced_normalisation_of_one_tensor_is_that_of_the_module(official):
    network = official.build()
    values = {n: forced_normalize(n, p) for n, p in network.named_parameters()}
    normalize_weights(network)
    for name, parameter in network.named_parameters():
        value = values[name]
        if value is None:
            assert parameter.ndim < 2
        else:
            assert torch.equal(value, parameter)
            assert not value.requires_grad


def test_forced_normalisation_keeps_the_precision_of_what_it_is_given():
    weight = torch.randn(8, 3, 3, 3)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        value = forced_normalize("w", weight.to(dtype))
        assert value.dtype == dtype
        assert relative_error(value.double(), normalize(weight.double(), (1, 2, 3))) < 0.01


def test_forward_never_changes_the_weights(official):
    network = official.build().train()
    before = copy.deepcopy(network.state_dict())
    official.run(network, ALL)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


K5 = [-0.03497305, 0.3019024, +0.266826, +0.226198, -0.457458, -0.277285, -0.445192, -0.185689]
F4 = [-0.1111390, 0.4392782, +0.387955, +0.379678, -0.484346, +0.456628, -0.429711, +0.428917]


def check_answers(net, entries, expected, logvar, trained, batch):
    network = EDM2Denoiser(net)
    fill(network)
    assert len(network.state_dict()) == entries
    out = answer(network, batch)
    assert summary(out) == pytest.approx(expected, rel=1e-5, abs=2e-6)
    assert out.logvar.tolist() == pytest.approx(logvar, rel=2e-6)
    normalize_weights(network)
    assert summary(answer(network, batch))[:2] == pytest.approx(trained, rel=1e-5)


def test_known_answer():
    expected = [*K5, +0.1477083, 0.1586426]
    check_answers(TINY, 92, expected, [+0.608187, -0.216429], [-0.03542023, 0.3028367], batch=2)


@pytest.mark.slow
def test_known_answer_at_full_size():
    net = EDM2_PRESETS["edm2-img512-s"]
    expected = [*F4, -0.004079155, 0.01546181]
    check_answers(net, 203, expected, [+0.608187], [-0.1161876, 0.4461272], batch=1)


def test_initial_weights_at_full_size():
    torch.manual_seed(0)
    weights = EDM2Denoiser(EDM2_PRESETS["edm2-img512-xs"]).state_dict()
    for key, value in {
        "unet.emb_fourier.freqs": -7.073861,
        "unet.out_conv.weight": +0.2473647,
        "logvar_linear.weight": -0.4135381,
    }.items():
        assert weights[key].flatten()[0].item() == pytest.approx(value, rel=1e-6)


SIZES = {
    "edm2-img512-xxs": 31_309_029,
    "edm2-img512-xs": 124_713_253,
    "edm2-img512-s": 280_212_837,
    "edm2-img512-m": 497_807_781,
    "edm2-img512-l": 777_498_085,
    "edm2-img512-xl": 1_119_283_749,
    "edm2-img512-xxl": 1_523_164_773,
    "edm2-img64-xs": 124_710_949,
    "edm2-img64-s": 280_209_381,
    "edm2-img64-m": 497_803_173,
    "edm2-img64-l": 777_492_325,
    "edm2-img64-xl": 1_119_276_837,
}


def test_every_preset_has_its_published_size():
    assert set(SIZES) == set(EDM2_PRESETS)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    net = EDM2_PRESETS[name]
    with torch.device("meta"):
        assert count(EDM2Denoiser(net)) == (SIZES[name], 203)


@pytest.mark.parametrize(("size", "parameters"), [("xs", 124_201_253), ("s", 279_444_837)])
def test_unconditional_sizes(size, parameters):
    values = EDM2_PRESETS[f"edm2-img512-{size}"].to_json() | {"label_dim": 0}
    with torch.device("meta"):
        assert count(EDM2Denoiser(EDM2Network.from_json(values))) == (parameters, 202)


def test_state_dict_listing_with_and_without_the_log_variance_head():
    net = EDM2_PRESETS["edm2-img512-s"]
    expected = official_listing("edm2_img512_s")
    with torch.device("meta"):
        assert listing(EDM2Denoiser(net)) == expected
        generator = EDM2Denoiser(EDM2Network.from_json(net.to_json() | {"logvar": False}))
    assert listing(generator) == [item for item in expected if not item[0].startswith("logvar_")]
    assert count(generator) == (280_212_837 - 128, 200)


def test_what_is_not_wanted_is_not_computed():
    network = EDM2Denoiser(TINY)
    level, x = EDMSchedule().level(torch.tensor([1.0])), torch.randn(1, 4, 16, 16)
    both = network(x, level, Condition(), Want.X0 | Want.LOGITS | Want.LOGVAR)
    network.unet.decode = None  # calling it would raise
    out = network(x, level, Condition(), Want.LOGITS)
    assert out.x0 is None and out.logvar is None
    assert torch.equal(out.logits, both.logits) and out.logits.shape == (1, 1, 4, 4)
    network.unet.encode = None
    out = network(x, level, Condition(), Want.LOGVAR)
    assert torch.equal(out.logvar, both.logvar) and out.x0 is None and out.logits is None


def test_a_generator_has_no_log_variance():
    network = EDM2Denoiser(EDM2Network.from_json(TINY.to_json() | {"logvar": False}))
    level, x = EDMSchedule().level(torch.tensor([1.0])), torch.randn(1, 4, 16, 16)
    out = network(x, level, Condition(), Want.X0 | Want.LOGVAR)
    assert out.logvar is None and out.x0.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_body(official, dtype):
    """The body is half, what surrounds it is not, and the answer is about the same."""
    network = official.build()
    network.compute_dtype = dtype
    seen = {}

    def record(key):
        return lambda module, inputs, out: seen.__setitem__(key, (inputs[0].dtype, out.dtype))

    block = network.unet.enc["16x16_block0"]
    network.unet.emb_noise.register_forward_hook(record("embedding"))
    block.emb_linear.register_forward_hook(record("linear"))
    block.conv_res1.register_forward_hook(record("body"))
    out, grad_x, _ = official.run(network, ALL)
    assert seen["body"] == (dtype, dtype)
    assert seen["embedding"] == seen["linear"] == (torch.float32, torch.float32)
    assert out.x0.dtype == out.logvar.dtype == grad_x.dtype == torch.float32
    bound = 0.02 if dtype == torch.bfloat16 else 0.003
    assert relative_error(out.x0, official["out/D_x"]) < bound
    check(out.logvar, official, "out/logvar")


@pytest.mark.parametrize("mode", ["up", "down"])
def test_the_short_cut_resamples_like_the_filter(mode):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    # (2, 2) is the same filter before it is normalised, but takes the general path.
    assert torch.allclose(resample(x, (1, 1), mode), resample(x, (2, 2), mode), atol=1e-14)
    assert torch.equal(resample(x, (1, 3, 3, 1), "keep"), x)


def test_activations_keep_their_magnitude():
    """What the architecture is for: unit-magnitude input gives about unit magnitude throughout."""
    torch.manual_seed(0)
    network = EDM2Denoiser(TINY)
    magnitudes = []
    for layer in (*network.unet.enc.values(), *network.unet.dec.values()):
        layer.register_forward_hook(
            lambda module, inputs, out: magnitudes.append(out.square().mean().sqrt().item())
        )
    level = EDMSchedule().level(torch.full((2,), 0.5))
    network(torch.randn(2, 4, 16, 16) * 0.7, level, Condition())
    assert len(magnitudes) == 16
    assert all(0.5 < value < 2 for value in magnitudes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"img_resolution": 18}, "multiple of 4"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult_noise": "1"}, "channel_mult_noise"),
        ({"logvar": 1}, "logvar"),
        ({"channels_per_head": 0}, "channels_per_head"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EDM2Network.from_json(TINY.to_json() | wrong)
